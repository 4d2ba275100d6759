// SPDX-License-Identifier: Apache-2.0
// The product of few tokens with weights of bf16 or E4M3 on tensor cores, at the speed at which W comes from memory:
// decode. Host side; device pointers throughout.
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
// Most rows of x.
inline constexpr int64_t kNarrowMostRows = 16;
// Products with the same x that one launch takes: Q, K and V.
inline constexpr int kNarrowMostParts = 3;
// Above this linear_stream_sm90.h has E4M3. At 16 tokens of a whole model 4,444 tokens/s here, 3,892 there, on an H100.
inline constexpr int64_t kNarrowMostE4m3Rows = 16;

struct NarrowPart {
  const uint8_t* weight;  // [n, row_bytes], rows weight_stride bytes apart
  int64_t weight_stride;
  int n;
  int weight_scale_step;
  const void* weight_scale;     // of row r, group g at r * weight_scale_step + g, or null
  const void *bias, *residual;  // or null; the residual of out's type
  void* out;
  int64_t residual_stride, out_stride;  // elements
  DType weight_scale_dtype, bias_dtype, out_dtype;
  // Of a 4-bit code, as weight_scale; null: 8.
  const uint8_t* zeros = nullptr;
  int64_t zero_step = 0;
};

struct NarrowProduct {
  const uint8_t* x;  // [m, row_bytes] of the weights' type, rows x_stride bytes apart
  int64_t x_stride;
  int m;
  int row_bytes;         // of W: k elements
  const float* x_scale;  // of row r at r, or null
  // 4-bit codes: scales of a row, each for 128 << group_shift columns.
  int groups = 1, group_shift = 0;
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
