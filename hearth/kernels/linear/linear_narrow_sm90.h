// SPDX-License-Identifier: Apache-2.0
// The product of few tokens with weights of bf16 or E4M3 on tensor cores, at the speed at which W comes from memory:
// decode. Host side; device pointers throughout.
//   I1. A row of out depends on its row of x alone, bit for bit: sums have one order, whatever m is.
#pragma once

#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/tensor/dtype.h"

namespace hearth::sm90 {

inline constexpr int64_t kNarrowMostRows = 32;
// Above this cuBLASLt is faster in bf16: 97 us at 32 rows of Llama-3-8B's gate and up on an H100, this kernel 124 to
// 130.
inline constexpr int64_t kNarrowMostBf16Rows = 16;

struct NarrowProduct {
  const uint8_t* weight;  // [n, row_bytes], rows weight_stride bytes apart
  const uint8_t* x;       // [m, row_bytes] of the same type, rows x_stride bytes apart
  int64_t weight_stride, x_stride;
  int m, n;
  int row_bytes;             // k elements
  const void* weight_scale;  // of row r at r * weight_scale_step, or null
  const float* x_scale;      // of row r at r, or null
  int weight_scale_step;
  const void *bias, *residual;  // or null; the residual of out's type
  void* out;
  int64_t residual_stride, out_stride;  // elements
  DType weight_scale_dtype, bias_dtype, out_dtype;
};

// Whether the kernel takes weights and activations that lie so: 16-byte vectors, 64 bytes of a row at once.
bool fits_narrow(const ConstTensorView& x, const ConstTensorView& weight);
// The parts of `args` that do not depend on the type of x; x as it lies.
NarrowProduct narrow_product(const LinearArgs& args);
// REQUIRES: fits_narrow, 1 <= m <= kNarrowMostRows, n >= 1.
Status start_linear_narrow(const NarrowProduct& product, DType type, void* stream);

}  // namespace hearth::sm90
