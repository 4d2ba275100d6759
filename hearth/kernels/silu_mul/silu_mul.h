// SPDX-License-Identifier: Apache-2.0
// The gate of a SwiGLU feed-forward: silu(gate) * up.
#pragma once

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/kernels/rounded_rows.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// out[t, i] = silu(gate_up[t, i]) * gate_up[t, ffn + i], silu(x) = x / (1 + exp(-x)).
//   gate_up [tokens, 2 ffn] f32 or bf16
//   out     [tokens, ffn] as gate_up; optional where rounded is given
//   rounded out rounded to E4M3, optional: backends whose OpTable::rounds_outputs says so
// Numerics: f32, one rounding at the end; _sm90 with bf16 has a fast exponential and reciprocal: silu within 2^-17 of
// itself (2^-20 for gates in [-8, 8]) and 2^-123, which the rounding to bf16 hides.
// Errors: InvalidArgument for shapes or types that disagree, Unsupported for `rounded` where a backend has none (_cpu;
// _sm90 with f32).
struct SiluMulArgs {
  ConstTensorView gate_up;
  TensorView out;
  RoundedRows rounded = {};
};

Status validate(const SiluMulArgs& args);
Status silu_mul_ref(const SiluMulArgs& args, ExecContext& exec);
Status silu_mul_cpu(const SiluMulArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors in device memory; runs in exec.stream.
Status silu_mul_sm90(const SiluMulArgs& args, ExecContext& exec);

}  // namespace hearth
