// SPDX-License-Identifier: Apache-2.0
// Elements as kernels hold them: every storage type widens to f32 exactly and is rounded to nearest even on its way
// back; packs move as vectors of up to 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hearth::sm90 {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// kCount elements that are moved as vectors of at most 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T at[kCount];
};

// x in a register from here on: the compiler does not compute it again where it is used.
__device__ __forceinline__ int keep(int x) {
  asm("" : "+r"(x));
  return x;
}

// All of a pack. Those of bf16 move as words: number by number, the compiler gives each half a register of its own.
template <int kCount>
__device__ __forceinline__ void widen(const Pack<float, kCount>& pack, float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = pack.at[i];
}
template <int kCount>
__device__ __forceinline__ void widen(const Pack<__nv_bfloat16, kCount>& pack, float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const uint32_t pair = reinterpret_cast<const uint32_t*>(pack.at)[i];
    x[2 * i] = __uint_as_float(pair << 16), x[2 * i + 1] = __uint_as_float(pair & 0xFFFF0000u);
  }
}
template <int kCount>
__device__ __forceinline__ void narrow(const float (&x)[kCount], Pack<float, kCount>& pack) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.at[i] = x[i];
}
template <int kCount>
__device__ __forceinline__ void narrow(const float (&x)[kCount], Pack<__nv_bfloat16, kCount>& pack) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    reinterpret_cast<uint32_t*>(pack.at)[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
}

// The same sum in all lanes of a warp, added in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, step);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, step));
  return x;
}

}  // namespace hearth::sm90
