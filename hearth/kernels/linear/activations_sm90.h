// SPDX-License-Identifier: Apache-2.0
// The rows of x as a quantized linear multiplies them (act_quantize.h): in W's stored order, rounded by ActFormat, as
// f32 in the op's scratch memory, with their scales beside them. The same bits as quantize_act().
#pragma once

#include "hearth/kernels/exec.h"
#include "hearth/kernels/linear/linear.h"

namespace hearth::sm90 {

// x8 of row r at x + r * stride; its scale, that of group g, at scale + r * scale_stride + g (null: 1).
struct RoundedActivations {
  const float* x;
  const float* scale;
  int64_t stride, scale_stride;
};

// Scratch for `rows` rows of k columns, of any format.
int64_t rounded_activations_bytes(int64_t rows, int64_t k);

// Starts the rounding of rows [begin, begin + rows) of args.x, or nothing where x is fit as it is. Native rows in f32
// and in order lie where they lay. REQUIRES: valid args, rounded_activations_bytes() in exec.workspace.
Result<RoundedActivations> round_activations(const LinearArgs& args, int64_t begin, int64_t rows, ExecContext& exec);

}  // namespace hearth::sm90
