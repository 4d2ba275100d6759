// SPDX-License-Identifier: Apache-2.0
// The formats that the benchmarks of quantized linears time, and weights for them. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

struct BenchFormat {
  std::string name;
  WeightFormat format;
};

// Those whose name begins with `only`.
std::vector<BenchFormat> bench_formats(const std::string& only);
// Random weights; a piece of 1 MiB of codes repeats.
QuantizedMatrix bench_matrix(const WeightFormat& format, int64_t n, int64_t k);
// Repeats the first MiB over the rest.
void repeat_first_piece(std::span<uint8_t> bytes);

}  // namespace hearth
