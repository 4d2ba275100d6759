// SPDX-License-Identifier: Apache-2.0
// Rows of bf16 rounded to INT8 with a scale for each 128 columns, as act_quantize.h says, in the order in which
// linear_lines_sm90.cuh multiplies them. Host side; device pointers throughout.
#pragma once

#include <cstddef>

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"

namespace hearth::sm90 {

// Whether the kernel takes rows that lie so: 8-byte vectors of bf16, whole groups.
bool can_arrange_groups(const ConstTensorView& x);
// Starts the work into `to` [arranged_bytes()], 16-byte aligned. REQUIRES: can_arrange_groups(x), 1 to 16 rows.
Status arrange_groups(const ConstTensorView& x, std::byte* to, void* stream);

}  // namespace hearth::sm90
