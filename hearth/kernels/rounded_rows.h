// SPDX-License-Identifier: Apache-2.0
// Rows rounded to E4M3 by the op that computes them (rmsnorm, silu_mul), for the linear that multiplies them: what
// ActFormat kE4m3PerToken and kE4m3Static say (linear/act_quantize.h), done while the row is in registers. A value;
// owns nothing.
#pragma once

#include <string_view>

#include "hearth/base/result.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// An op's second output. Row r stands for scales[r] * codes[r].
//   codes        [rows, cols] e4m3
//   scales       [rows] f32, written: s of act_quantize.h
//   static_scale [1] f32, where a backend's tensors lie: s of kE4m3Static. Empty: kE4m3PerToken
// Numerics: a row is first rounded to the op's output type, then these numbers to E4M3: the bits that quantize_act()
// makes of the op's plain output.
struct RoundedRows {
  TensorView codes;
  TensorView scales;
  ConstTensorView static_scale;

  explicit operator bool() const { return static_cast<bool>(codes); }
};

// Types and shapes, of the rounding of an output [rows, cols].
Status check_rounded(std::string_view op, const RoundedRows& rounded, int64_t rows, int64_t cols);

}  // namespace hearth
