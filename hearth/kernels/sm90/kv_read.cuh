// SPDX-License-Identifier: Apache-2.0
// KV formats as kernels read them. A format is a type with
//   Steps                      what turns a key's or value's codes into numbers
//   steps(kv, at, scale)       those of one token and head, whose parameters lie at `at`; `scale` is kFp8's
//   read<n>(from, steps, to)   n consecutive channels in f32; n = kWide is a load of 16 bytes, which rows of a multiple
//                              of kWide channels are aligned for, n = 2, 4 and 8 what all rows of multiples of 8 are
// A number depends on its code and its steps alone. int4-fireq and int4-saw are Int4Kv too: what their transforms do is
// done to K before, and to Q.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hearth/kernels/sm90/step.cuh"
#include "hearth/kernels/sm90/values.cuh"

namespace hearth::sm90 {

// f32 and bf16.
template <class Kv>
struct PlainKv {
  static constexpr int kWide = 16 / sizeof(Kv);
  static constexpr bool kTransforms = false;  // whether Q may have to be transformed
  struct Steps {};

  static __device__ __forceinline__ Steps steps(const DeviceKv&, const std::byte*, float) { return {}; }
  template <int kCount>
  static __device__ __forceinline__ void read(const std::byte* from, Steps, float (&to)[kCount]) {
    const auto pack = *reinterpret_cast<const Pack<Kv, kCount>*>(from);
#pragma unroll
    for (int c = 0; c < kCount; ++c) to[c] = widen(pack.at[c]);
  }
  // Bytes of `channels` channels.
  static __device__ __forceinline__ int bytes(int channels) { return channels * static_cast<int>(sizeof(Kv)); }
};

struct Fp8Kv {
  static constexpr int kWide = 16;
  static constexpr bool kTransforms = false;
  struct Steps {
    float scale;
  };

  static __device__ __forceinline__ Steps steps(const DeviceKv&, const std::byte*, float scale) { return {scale}; }
  template <int kCount>
  static __device__ __forceinline__ void read(const std::byte* from, Steps steps, float (&to)[kCount]) {
    const auto pack = *reinterpret_cast<const Pack<__nv_fp8x2_storage_t, kCount / 2>*>(from);
#pragma unroll
    for (int c = 0; c < kCount; c += 2) {
      const float2 pair = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pack.at[c / 2], __NV_E4M3)));
      to[c] = pair.x * steps.scale;
      to[c + 1] = pair.y * steps.scale;
    }
  }
  static __device__ __forceinline__ int bytes(int channels) { return channels; }
};

struct Int4Kv {
  static constexpr int kWide = 32;
  static constexpr bool kTransforms = true;
  struct Steps {
    float step, base;
  };

  static __device__ __forceinline__ Steps steps(const DeviceKv& kv, const std::byte* at, float) {
    const auto* const stored = reinterpret_cast<const __half*>(at);
    const float step = __half2float(stored[0]);
    return {step, kv.has_base ? __half2float(stored[1]) : -8 * step};
  }
  template <int kCount>
  static __device__ __forceinline__ void read(const std::byte* from, Steps steps, float (&to)[kCount]) {
    using Word = std::conditional_t<kCount >= 8, uint32_t, std::conditional_t<kCount == 4, uint16_t, uint8_t>>;
    constexpr int kPerWord = 2 * static_cast<int>(sizeof(Word));
    const auto pack = *reinterpret_cast<const Pack<Word, kCount / kPerWord>*>(from);
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const uint32_t code = uint32_t{pack.at[c / kPerWord]} >> c % kPerWord * 4 & 15;
      // 2^23 + code has code in its last bits: cheaper than a conversion, and as exact.
      to[c] = fmaf(__uint_as_float(0x4B000000 | code) - 0x1p23f, steps.step, steps.base);
    }
  }
  static __device__ __forceinline__ int bytes(int channels) { return channels / 2; }
};

}  // namespace hearth::sm90
