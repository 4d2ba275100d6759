// SPDX-License-Identifier: Apache-2.0
// How a linear layer rounds its activations before it multiplies (ActFormat): the definition, in scalar code. Backends
// give the same bits. Scales are f32; x8 holds the rounded values as f32, exactly.
//   kE4m3PerToken  s = max |x| / 448 over the row,   x8 = e4m3(x / s), saturating, ties to even
//   kE4m3Static    s stored,                         x8 = e4m3(x / s)
//   kI8PerGroup    s = max |x| / 127 over the group, x8 = x / s to the nearest integer, ties to even, -127..127
// Where s would be below 2^-126 (no number in it, or none that counts) it is 1. A row or group with a NaN or an
// infinity has s = NaN and x8 = 0, so that its outputs are NaN; with a static scale such a number itself becomes NaN or
// +-448. Pure functions.
#pragma once

#include <span>

#include "hearth/base/function_ref.h"
#include "hearth/kernels/rounded_rows.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

// s of max |x|, which is infinite or NaN where x has such a number.
float act_scale_of(float max_magnitude, float largest_code);
// x8 over x, in place; returns s. REQUIRES: the format is one of the dynamic ones, x its row or group.
float quantize_act(ActFormat act, std::span<float> x);
// x8 over x, in place.
void quantize_act_static(float scale, std::span<float> x);
// Row `row` of codes and scales, of the numbers that `x` returns for its columns.
void round_row(const RoundedRows& to, int64_t row, FunctionRef<float(int64_t)> x);

}  // namespace hearth
