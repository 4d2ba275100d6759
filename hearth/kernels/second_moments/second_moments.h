// SPDX-License-Identifier: Apache-2.0
// What the quantizer gathers of a linear's input: sums over tokens of the products of channels, and of magnitudes.
#pragma once

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// Tokens whose products are added up in f32.
inline constexpr int64_t kMomentTokens = 256;

// sums[i, j] for j >= i: sum over tokens of x[t, i] x[t, j]; what lies below the diagonal is not defined.
// sum_abs[i]: of |x[t, i]|. max_abs[i]: the largest |x[t, i]|.
//   x [tokens, channels] f32;  sums [channels, channels] f64;  sum_abs [channels] f64;  max_abs [channels] f32
// `add`: to what is there, else that is overwritten.
// Numerics: products and their sums over kMomentTokens tokens in f32, in the order of the tokens (fused multiply-adds
// where the instruction set has them), these and magnitudes added in f64, in order: the same for any number of threads.
// Backends with fused multiply-adds agree in every bit. Errors: InvalidArgument for shapes or types that disagree.
struct SecondMomentsArgs {
  ConstTensorView x;
  TensorView sums, sum_abs, max_abs;
  bool add = false;
};

Status validate(const SecondMomentsArgs& args);
Status second_moments_ref(const SecondMomentsArgs& args, ExecContext& exec);
Status second_moments_cpu(const SecondMomentsArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors in device memory; runs in exec.stream.
Status second_moments_sm90(const SecondMomentsArgs& args, ExecContext& exec);

}  // namespace hearth
