// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang and Sennrich, 2019), with an optional residual sum in front of it.
#pragma once

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/kernels/rounded_rows.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// sum = x + residual (only where residual is given; written back to residual)
// out = sum * rsqrt(mean(sum^2) + eps) * weight, the mean over the last dimension.
//   x        [rows, hidden] f32 or bf16
//   residual [rows, hidden] as x, in and out, optional
//   weight   [hidden] f32 or bf16
//   out      [rows, hidden] as x; may be x itself; optional where rounded is given
//   rounded  out rounded to E4M3, optional: backends whose OpTable::rounds_outputs says so
// Numerics: the sum of squares accumulates in f32 (f64 in _ref); with bf16, sum is rounded to bf16 before
// it is used, so that the residual stream and the normalised value see the same number.
// Errors: InvalidArgument for shapes or types that disagree, Unsupported for `rounded` where a backend has none
// (_cpu; _sm90 with f32).
struct RmsNormArgs {
  ConstTensorView x;
  TensorView residual;
  ConstTensorView weight;
  TensorView out;
  float eps = 1e-5f;
  RoundedRows rounded = {};
};

Status validate(const RmsNormArgs& args);
Status rmsnorm_ref(const RmsNormArgs& args, ExecContext& exec);
Status rmsnorm_cpu(const RmsNormArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors in device memory; runs in exec.stream.
Status rmsnorm_sm90(const RmsNormArgs& args, ExecContext& exec);

}  // namespace hearth
