// SPDX-License-Identifier: Apache-2.0
// From QuantizedMatrix, which owns its parts, to LinearWeight, whose views ops read: the parts lie one behind the other
// in memory that the caller planned, each 64-byte aligned, scales in the type in which the format stores them.
// Pure functions; any thread may call them for memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hearth/tensor/quantized_matrix.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

// Bytes that place_quantized() takes: a multiple of 64.
int64_t quantized_weight_bytes(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order);

// Copies the parts of `matrix` to `memory` and returns their views; no bias. Types and shapes of the views, with
// G = ceil(k / group_k) or 1:
//   codes  [n, k] kU4 (4-bit formats and up to 4 bitvectors; the row stride is k rounded up to even), kU8 (5 to 8
//          bitvectors), kE4m3, kF32, kF16 or kBf16
//   scales of scale_dtype: kTensor [1], kRow [n], kGroup [n, G], kBlock [ceil(n / block_n), G]; zeros kU8 likewise
//   lines  [lines, S] kI8 (integer lines) or kF16; line_scales [lines] kF16; line_index [n, G] kU16
//   k_order [k] kI32; act_scale [1] kF32
// REQUIRES: matrix.validate(); memory is 64-byte aligned and holds quantized_weight_bytes().
LinearWeight place_quantized(const QuantizedMatrix& matrix, std::byte* memory);

// The bytes that place_quantized() takes for the codes, which lie first: a multiple of 64.
int64_t quantized_codes_bytes(const WeightFormat& format, int64_t n, int64_t k);
// As place_quantized() for a matrix without codes, whose other parts go to `memory`; who calls fills `codes`.
// REQUIRES: matrix.validate(false); `memory` holds quantized_weight_bytes() - quantized_codes_bytes().
LinearWeight place_quantized_parts(const QuantizedMatrix& matrix, std::byte* codes, std::byte* memory);

}  // namespace hearth
