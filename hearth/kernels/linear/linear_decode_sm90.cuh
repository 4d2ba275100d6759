// SPDX-License-Identifier: Apache-2.0
// From stored weights to the f32 values that a tile multiplies with (linear_tile_sm90.cuh). A decoder belongs to one
// thread and one row of W; it walks along K in chunks of 8 columns, forwards only:
//   begin(params, row), then for each chunk fetch(params, k, k_end), which asks memory for it, and
//   decode(params, shared, k, k_end, put), which calls put(j, value) for column k + j; it is 0 at and beyond k_end.
// Values are those of QuantizedMatrix::dequantize_row, bit for bit, or where kScaled is false those before their scale.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "hearth/kernels/sm90/values.cuh"
#include "hearth/tensor/dtype.h"

namespace hearth::sm90 {

constexpr int kChunk = 8;

__device__ __forceinline__ float widen_e4m3(uint32_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(code), __NV_E4M3)));
}

// Element `i` of an array of f32, f16, bf16, e4m3 or i8.
__device__ __forceinline__ float number_at(const void* from, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF16: return widen(static_cast<const __half*>(from)[i]);
    case DType::kBf16: return widen(static_cast<const __nv_bfloat16*>(from)[i]);
    case DType::kE4m3: return widen_e4m3(static_cast<const uint8_t*>(from)[i]);
    case DType::kI8: return static_cast<const int8_t*>(from)[i];
    default: return static_cast<const float*>(from)[i];
  }
}

// The same in two steps, so that nobody waits for memory before the number is needed: what lies there, and its value.
__device__ __forceinline__ uint32_t stored_at(const void* from, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const uint32_t*>(from)[i];
  if (dtype == DType::kF16 || dtype == DType::kBf16) return static_cast<const uint16_t*>(from)[i];
  return static_cast<const uint8_t*>(from)[i];
}
__device__ __forceinline__ float value_of_stored(uint32_t stored, DType dtype) {
  switch (dtype) {
    case DType::kF16: return widen(__ushort_as_half(static_cast<unsigned short>(stored)));
    case DType::kBf16: return __uint_as_float(stored << 16);
    case DType::kE4m3: return widen_e4m3(stored);
    default: return __uint_as_float(stored);
  }
}

// kBytes from `from`, of which the first `count` exist; the others are 0. Aligned: `from` is, to min(kBytes, 16).
template <int kBytes>
__device__ __forceinline__ void load_bytes(const uint8_t* from, int count, bool aligned, uint32_t (&to)[kBytes / 4]) {
  if (aligned && count >= kBytes) {
    if constexpr (kBytes == 4) to[0] = *reinterpret_cast<const uint32_t*>(from);
    if constexpr (kBytes == 8) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      to[0] = v.x, to[1] = v.y;
    }
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from)[i];
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kBytes / 4; ++i) to[i] = 0;
#pragma unroll
  for (int i = 0; i < kBytes; ++i)
    if (i < count) to[i / 4] |= static_cast<uint32_t>(from[i]) << (i % 4 * 8);
}

// Plain weights of type W.
template <class W>
class PlainDecoder {
 public:
  struct Params {
    const uint8_t* codes;
    int64_t row_bytes;
    bool aligned;
  };
  struct Shared {};

  static __device__ void prepare(const Params&, Shared&) {}
  static __device__ float scale(const Params&, int, int) { return 1; }

  __device__ void begin(const Params& p, int row) { row_ = p.codes + row * p.row_bytes; }
  __device__ void fetch(const Params& p, int k, int k_end) {
    load_bytes<kBytes>(row_ + int64_t{k} * sizeof(W), (k_end - k) * static_cast<int>(sizeof(W)), p.aligned, raw_);
  }
  template <class Put>
  __device__ void decode(const Params&, const Shared&, int, int, const Put& put) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if constexpr (sizeof(W) == 4) {
        put(j, __uint_as_float(raw_[j]));
      } else {
        const auto bits = static_cast<unsigned short>(raw_[j / 2] >> (j % 2 * 16));
        if constexpr (std::is_same_v<W, __half>) {
          put(j, widen(__ushort_as_half(bits)));
        } else {
          put(j, widen(__ushort_as_bfloat16(bits)));
        }
      }
    }
  }

 private:
  static constexpr int kBytes = kChunk * sizeof(W);
  const uint8_t* row_;
  uint32_t raw_[kBytes / 4];
};
// How codes become values.
enum class StoredCode {
  kNibble,  // a table of 16, less a zero point
  kE4m3,
  kLine4,  // up to 4 bitvectors, two codes per byte
  kLine8,  // 5 to 8, a byte each
};

// A quantized weight, its parts in device memory. Group g of row r has the scale and the zero point at
// r / block_n * stride + g * group_step of their arrays.
struct QuantizedParams {
  const uint8_t* codes;
  int64_t row_bytes;
  const void* scales;         // null: 1
  const uint8_t* zeros;       // null: fixed_zero
  const void* lines;          // i8 with line_scales, else f16
  const __half* line_scales;  // null: 1
  const uint16_t* line_index;
  int64_t scale_stride, zero_stride, line_stride, line_index_stride;
  int block_n;
  int group_step;
  int group_k;  // K where there are no groups
  int bitvectors;
  DType scale_dtype;
  bool aligned;
  float fixed_zero;
  float values[16];  // of nibbles
};

template <StoredCode kCode, bool kScaled>
class QuantizedDecoder {
 public:
  using Params = QuantizedParams;
  struct Shared {
    float values[16];
  };

  static __device__ void prepare(const Params& p, Shared& shared) {
    if (kCode == StoredCode::kNibble && threadIdx.x == 0)
#pragma unroll
      for (int i = 0; i < 16; ++i) shared.values[i] = p.values[i];
  }
  static __device__ float scale(const Params& p, int row, int group) {
    float scale = 1;
    if (p.scales != nullptr)
      scale = number_at(p.scales, p.scale_dtype, row / p.block_n * p.scale_stride + group * p.group_step);
    if (kLines && p.line_scales != nullptr)
      scale = __fmul_rn(scale, widen(p.line_scales[p.line_index[row * p.line_index_stride + group]]));
    return scale;
  }

  __device__ void begin(const Params&, int row) { row_ = row, group_end_ = 0; }
  __device__ void fetch(const Params& p, int k, int k_end) {
    if (k < k_end && k >= group_end_) seek(p, k);
    load_bytes<kBytes>(p.codes + int64_t{row_} * p.row_bytes + int64_t{k} * kBytes / kChunk,
                       kPacked ? (k_end - k + 1) / 2 : k_end - k, p.aligned, raw_);
  }
  template <class Put>
  __device__ void decode(const Params& p, const Shared& shared, int k, int k_end, const Put& put) {
    if (k + kChunk <= group_end_ && k + kChunk <= k_end) {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) put(j, value(shared, j));
      return;
    }
    // A chunk of several groups, or the last one: rare, and a loop, so that it takes few instructions.
#pragma unroll 1
    for (int j = 0; j < kChunk; ++j) {
      if (k + j < k_end && k + j >= group_end_) seek(p, k + j);
      put(j, k + j < k_end ? value(shared, j) : 0.0f);
    }
  }

 private:
  static constexpr bool kLines = kCode == StoredCode::kLine4 || kCode == StoredCode::kLine8;
  static constexpr bool kPacked = kCode == StoredCode::kNibble || kCode == StoredCode::kLine4;
  static constexpr int kBytes = kPacked ? kChunk / 2 : kChunk;
  static constexpr int kMaxBitvectors = kCode == StoredCode::kLine8 ? 8 : 4;

  // To the group of column k.
  __device__ void seek(const Params& p, int k) {
    const int group = k / p.group_k;
    group_end_ = (group + 1) * p.group_k;
    if (kScaled) scale_ = scale(p, row_, group);
    if constexpr (kCode == StoredCode::kNibble)
      zero_ = p.zeros == nullptr ? p.fixed_zero : p.zeros[row_ / p.block_n * p.zero_stride + group * p.group_step];
    if constexpr (kLines) {
      const int64_t line = p.line_index[row_ * p.line_index_stride + group] * p.line_stride;
      // Bit b of a code takes coefficient S - 1 - b.
#pragma unroll
      for (int b = 0; b < kMaxBitvectors; ++b) {
        const int64_t at = line + p.bitvectors - 1 - b;
        coefficient_[b] = b >= p.bitvectors          ? 0.0f
                          : p.line_scales != nullptr ? static_cast<float>(static_cast<const int8_t*>(p.lines)[at])
                                                     : widen(static_cast<const __half*>(p.lines)[at]);
      }
    }
  }

  __device__ float value(const Shared& shared, int j) const {
    const uint32_t code =
        kPacked ? raw_[0] >> (4 * j) & 15 : (j < 4 ? raw_[0] : raw_[kBytes / 4 - 1]) >> (j % 4 * 8) & 255;
    float v = 0;
    if constexpr (kCode == StoredCode::kNibble) v = shared.values[code] - zero_;
    if constexpr (kCode == StoredCode::kE4m3) v = widen_e4m3(code);
    if constexpr (kLines)
#pragma unroll
      for (int b = kMaxBitvectors - 1; b >= 0; --b) v += code >> b & 1 ? coefficient_[b] : 0.0f;
    return kScaled ? __fmul_rn(scale_, v) : v;
  }

  int row_;
  int group_end_;
  float scale_, zero_;
  float coefficient_[kLines ? kMaxBitvectors : 1];
  uint32_t raw_[kBytes / 4];
};

}  // namespace hearth::sm90
