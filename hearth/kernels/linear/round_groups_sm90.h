// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 rounded to INT8 with a scale for each 128 columns, as act_quantize.h says, row by row and in their order:
// for linear_lines_wide_sm90.cuh. Host side; device pointers throughout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"

namespace hearth::sm90 {

struct RowsI8 {
  ConstTensorView codes;  // [m, k]
  const float* scale;     // [k / 128][scale_stride]: of each group, tokens side by side
  int64_t scale_stride;   // of groups, elements; a multiple of 4
};

// Whether the kernel takes rows that lie so: 16-byte vectors of bf16, whole groups.
bool can_round_groups(const ConstTensorView& x);
// Scratch for m rows of k columns: a multiple of 256 bytes.
int64_t round_groups_bytes(int64_t m, int64_t k);
// Starts the rounding of x [m, k] into `scratch`, 256-byte aligned, of round_groups_bytes(). REQUIRES:
// can_round_groups(x), m >= 1, m k < 2^33.
Result<RowsI8> round_groups(const ConstTensorView& x, std::byte* scratch, void* stream);

}  // namespace hearth::sm90
