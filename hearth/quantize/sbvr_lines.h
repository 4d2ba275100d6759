// SPDX-License-Identifier: Apache-2.0
// SBVR's coefficient lines (Bang et al., arXiv 2509.18172): the codebook of a matrix, learned by alternating between
// assigning groups to their best line and refitting each line to its groups by least squares (k-means over
// coefficient sets). A line absorbs the scale of its groups.
//   I1. Integer lines: coefficients -127..127 with every subset sum in -127..127, scales that f16 holds exactly.
// Internal to quantize.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/quantize/compute.h"
#include "hearth/quantize/encode.h"
#include "hearth/quantize/gptq.h"

namespace hearth {

struct Codebook {
  int bitvectors = 4;
  bool integer = true;
  std::vector<float> coefficients;  // [lines][S]
  std::vector<float> scales;        // [lines], 1 where lines are not integer
  int64_t lines() const { return static_cast<int64_t>(scales.size()); }
};

// The codebook as the loops read it. `levels.line_values` points into `values`.
struct PreparedLines {
  std::vector<float> values;   // [lines][16] ascending
  std::vector<uint8_t> codes;  // [lines][16]: the code of each rank
  LineTable table;
  CodeLevels levels;
};
PreparedLines prepare(const Codebook& book);

// Integer coefficients and their f16 scale (or f16 coefficients and 1) nearest to `wanted`; keeps I1.
void round_line(std::span<const float> wanted, bool integer, std::span<float> coefficients, float& scale);

// How many lines fit `max_bits` per weight, tables and indices included, at most 4096; at least 1.
int64_t affordable_lines(const WeightFormat& format, int64_t n, int64_t k, double max_bits);

// Learns `lines` lines for w [n][k]; weight [k] weighs squared errors by column (1 where nothing is known).
Result<Codebook> learn_lines(std::span<const float> w, int64_t n, int64_t k, const WeightFormat& format,
                             std::span<const float> weight, uint64_t seed, Compute& compute);

}  // namespace hearth
