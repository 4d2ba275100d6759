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

// The bits of the largest magnitude so far, in f32. kCount is even.
template <int kCount>
__device__ __forceinline__ unsigned largest_magnitude(const Pack<__nv_bfloat16, kCount>& numbers, unsigned largest) {
  const auto* const pairs = reinterpret_cast<const uint32_t*>(numbers.at);
  uint32_t of_pairs = 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) of_pairs = __vmaxu2(of_pairs, pairs[i] & 0x7FFF7FFFu);
  return max(largest, max(of_pairs << 16, of_pairs & 0xFFFF0000u));
}
// Below the one, remainders of numbers that have a code may be too small to be exact; above the other, reciprocals.
inline constexpr float kLeastQuickScale = 0x1p-90f, kLargestQuickScale = 0x1p100f;

// Rounds packs whose magnitudes are at most `largest` (its bits) by one scale.
class E4m3Rounding {
 public:
  __device__ __forceinline__ E4m3Rounding(float scale, unsigned largest) : scale_(scale) {
    reciprocal_ = __frcp_rn(scale);
    is_quick_ = scale >= kLeastQuickScale && scale <= kLargestQuickScale &&
                __fmul_rn(__uint_as_float(largest), reciprocal_) <= 0x1p20f;
  }

  // Codes of neighbours. kCount is a multiple of 4.
  template <int kCount>
  __device__ __forceinline__ Pack<uint8_t, kCount> operator()(const Pack<__nv_bfloat16, kCount>& numbers) const {
    static_assert(kCount % 4 == 0);
    Pack<uint8_t, kCount> codes;
    if (is_quick_) {
      const auto* const pairs = reinterpret_cast<const uint32_t*>(numbers.at);
      // Signs are put back afterwards, four at a time: zeros keep theirs.
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
        const uint32_t low = pairs[2 * i], high = pairs[2 * i + 1];
        reinterpret_cast<uint32_t*>(codes.at)[i] =
            of_magnitudes(low) | of_magnitudes(high) << 16 | (__byte_perm(low, high, 0x7531) & 0x80808080u);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) codes.at[i] = round_e4m3(widen(numbers.at[i]), scale_);
    }
    return codes;
  }

 private:
  // x / scale to nearest for an x >= 0 of bf16, from the scale's reciprocal to nearest: the remainder of the first guess
  // is exact, and corrects it. For every mantissa of x in bf16 and of the scale in f32 that is the quotient to nearest
  // (all 2^30 pairs compared on a CPU); what is too small for that has code 0 either way.
  __device__ __forceinline__ float quotient(float x) const {
    const float guess = __fmul_rn(x, reciprocal_);
    return __fmaf_rn(__fmaf_rn(-guess, scale_, x), reciprocal_, guess);
  }
  __device__ __forceinline__ uint32_t of_magnitudes(uint32_t pair) const {
    const float2 quotients = {quotient(__uint_as_float(pair << 16 & 0x7FFF0000u)),
                              quotient(__uint_as_float(pair & 0x7FFF0000u))};
    return __nv_cvt_float2_to_fp8x2(quotients, __NV_SATFINITE, __NV_E4M3);
  }

  float scale_, reciprocal_;
  bool is_quick_;
};

template <int kCount>
__device__ __forceinline__ Pack<uint8_t, kCount> round_e4m3(const Pack<__nv_bfloat16, kCount>& numbers, float scale) {
  return E4m3Rounding(scale, largest_magnitude(numbers, 0u))(numbers);
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
