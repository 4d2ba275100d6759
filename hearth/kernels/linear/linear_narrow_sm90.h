// SPDX-License-Identifier: Apache-2.0
// The product of few tokens on tensor cores, at the speed at which W comes from memory: decode. Weights of bf16 and
// E4M3; what else takes NarrowProduct says so (linear_ring_sm90.cuh, linear_stream_sm90.h). Host side; device pointers
// throughout.
//   I1. A row of out depends on its row of x alone, bit for bit: sums have one order, whatever m is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/tensor/dtype.h"

namespace hearth::sm90 {

// Rows of W that a block takes at once.
inline constexpr int kNarrowRows = 16;
// Most rows of x. In E4M3 linear_stream_sm90.h takes over: 4,444 tokens/s of a whole model here at 16, 3,892 there, on
// an H100.
inline constexpr int64_t kNarrowMostRows = 16;
// Products with the same x that one launch takes: Q, K and V.
inline constexpr int kNarrowMostParts = 3;
struct NarrowPart {
  const uint8_t* weight;  // [n, row_bytes], rows weight_stride bytes apart
  int64_t weight_stride;
  int n;
  int weight_scale_step;
  const void* weight_scale;     // of row r at r * weight_scale_step, or null
  const void *bias, *residual;  // or null; the residual of out's type
  void* out;
  int64_t residual_stride, out_stride;  // elements
  DType weight_scale_dtype, bias_dtype, out_dtype;
};

struct NarrowProduct {
  const uint8_t* x;  // [m, k] bf16 or e4m3, rows x_stride bytes apart
  int64_t x_stride;
  int m;
  int row_bytes;         // of W: k elements
  const float* x_scale;  // of row r at r, or null
  int parts;
  NarrowPart part[kNarrowMostParts];
};

// Whether the kernel takes weights and activations that lie so: 16-byte vectors, 128 bytes of a row at once.
bool fits_narrow(const ConstTensorView& x, const ConstTensorView& weight);
// What of `args` does not depend on the type of x; x as it lies. One part.
NarrowProduct narrow_product(const LinearArgs& args);
NarrowPart narrow_part(const LinearArgs& args);
// REQUIRES: fits_narrow, 1 <= m <= kNarrowMostRows, n >= 1 of every part.
Status start_linear_narrow(const NarrowProduct& product, DType type, void* stream);

}  // namespace hearth::sm90
