// SPDX-License-Identifier: Apache-2.0
// Rounding of activations to E4M3 (linear/act_quantize.h), in registers: the same bits. Largest magnitudes are compared
// as integers, so that NaN and infinities win and their order does not matter.
#pragma once

#include <cuda_fp8.h>

#include <cfloat>
#include <cstdint>

#include "hearth/kernels/sm90/values.cuh"

namespace hearth::sm90 {

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

// act_scale_of() of the bits of the largest magnitude.
__device__ __forceinline__ float act_scale_of_bits(unsigned largest, float largest_code) {
  if (largest >= 0x7F800000u) return __uint_as_float(0x7FC00000u);
  const float scale = __fdiv_rn(__uint_as_float(largest), largest_code);
  return scale < FLT_MIN ? 1.0f : scale;
}
__device__ __forceinline__ float e4m3_scale_of(unsigned largest) { return act_scale_of_bits(largest, 448.0f); }

// The code of x / scale; 0 where the scale is NaN.
__device__ __forceinline__ uint8_t round_e4m3(float x, float scale) {
  return isnan(scale) ? 0 : __nv_cvt_float_to_fp8(__fdiv_rn(x, scale), __NV_SATFINITE, __NV_E4M3);
}

template <class T, int kCount>
__device__ __forceinline__ unsigned largest_magnitude(const Pack<T, kCount>& numbers, unsigned largest) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = max(largest, magnitude(widen(numbers.at[i])));
  return largest;
}
// Below the one, remainders of numbers that have a code may be too small to be exact; above the other, reciprocals.
inline constexpr float kLeastQuickScale = 0x1p-90f, kLargestQuickScale = 0x1p100f;

// x / scale to nearest from the scale's reciprocal to nearest, in three operations: the remainder of the first guess is
// exact, and corrects it. For every mantissa of x in bf16 and of the scale in f32 that is the quotient to nearest (all
// 2^30 pairs compared on a CPU); what is too small for that has code 0 either way, what is too large is cut off.
__device__ __forceinline__ float quotient(__nv_bfloat16 x, float scale, float reciprocal) {
  const float number = widen(x), guess = __fmul_rn(number, reciprocal);
  const float corrected = __fmaf_rn(__fmaf_rn(-guess, scale, number), reciprocal, guess);
  // Zeros keep their sign, and what is too large for a remainder its size.
  return magnitude(guess) - 1 < __float_as_uint(0x1p20f) ? corrected : guess;
}

// Codes of neighbours. kCount is even.
template <int kCount>
__device__ __forceinline__ Pack<uint8_t, kCount> round_e4m3(const Pack<__nv_bfloat16, kCount>& numbers, float scale) {
  Pack<uint8_t, kCount> codes;
  if (scale >= kLeastQuickScale && scale <= kLargestQuickScale) {
    const float reciprocal = __frcp_rn(scale);
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float2 pair = {quotient(numbers.at[i], scale, reciprocal), quotient(numbers.at[i + 1], scale, reciprocal)};
      const __nv_fp8x2_storage_t both = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
      codes.at[i] = both & 0xFF, codes.at[i + 1] = both >> 8;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) codes.at[i] = round_e4m3(widen(numbers.at[i]), scale);
  }
  return codes;
}

// The largest over the threads of a block of kWarps warps, in all of them. `of_warp` [kWarps] is shared by the block.
// The block's one __syncthreads(): every warp's lane 0 writes, then all read.
template <int kWarps>
__device__ __forceinline__ unsigned block_largest(unsigned largest, unsigned* of_warp) {
  largest = __reduce_max_sync(0xFFFFFFFF, largest);
  if constexpr (kWarps > 1) {
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    largest = __reduce_max_sync(0xFFFFFFFF, lane < kWarps ? of_warp[lane] : 0u);
  }
  return largest;
}

}  // namespace hearth::sm90
