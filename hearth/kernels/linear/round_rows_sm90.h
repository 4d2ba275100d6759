// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 rounded to E4M3 on the GPU, as act_quantize.h says, for linears whose x did not come rounded. Host side;
// device pointers throughout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"
#include "hearth/tensor/weight_format.h"

namespace hearth::sm90 {

// Rows in E4M3 and the scale of each.
struct RowsE4m3 {
  ConstTensorView codes;
  const float* scale;
};

// Whether the kernel takes rows that lie so: 16-byte vectors of bf16.
bool can_round_rows(const ConstTensorView& x);
// Scratch for m rows of k columns: a multiple of 256 bytes.
int64_t round_rows_bytes(int64_t m, int64_t k);
// Starts the rounding of x [m, k] for `weight` into `scratch`, 256-byte aligned, of round_rows_bytes(). REQUIRES:
// can_round_rows(x), m >= 1; weight.format.act is kE4m3PerToken or kE4m3Static.
Result<RowsE4m3> round_rows(const ConstTensorView& x, const LinearWeight& weight, std::byte* scratch, void* stream);

}  // namespace hearth::sm90
