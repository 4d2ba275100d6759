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
template <class T, int kCount>
__device__ __forceinline__ Pack<uint8_t, kCount> round_e4m3(const Pack<T, kCount>& numbers, float scale) {
  Pack<uint8_t, kCount> codes;
#pragma unroll
  for (int i = 0; i < kCount; ++i) codes.at[i] = round_e4m3(widen(numbers.at[i]), scale);
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
