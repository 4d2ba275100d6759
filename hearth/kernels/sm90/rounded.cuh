// SPDX-License-Identifier: Apache-2.0
// A float whose operations are each rounded to nearest, never contracted to a fused one: for arithmetic that must give
// the CPU's bits (whose code is compiled with -ffp-contract=off). Device code, no state.
#pragma once

#include <cuda_fp16.h>

namespace hearth::sm90 {

struct Rounded {
  float value;

  __device__ __forceinline__ Rounded(float x) : value(x) {}  // NOLINT: floats mix with it
  __device__ __forceinline__ operator float() const { return value; }
  __device__ __forceinline__ Rounded operator-() const { return -value; }

  friend __device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) { return __fadd_rn(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) { return __fsub_rn(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) { return __fmul_rn(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) { return __fdiv_rn(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator+(Rounded a, float b) { return a + Rounded(b); }
  friend __device__ __forceinline__ Rounded operator-(Rounded a, float b) { return a - Rounded(b); }
  friend __device__ __forceinline__ Rounded operator*(Rounded a, float b) { return a * Rounded(b); }
  friend __device__ __forceinline__ Rounded operator/(Rounded a, float b) { return a / Rounded(b); }
};

inline constexpr float kMaxF16 = 65504.0f;

// The nearest f16 of a number cut off at the largest; NaN stays NaN.
__device__ __forceinline__ float rounded_f16(float x) {
  return __half2float(__float2half_rn(x < -kMaxF16 ? -kMaxF16 : kMaxF16 < x ? kMaxF16 : x));
}

// The next f16 above or below a finite one.
__device__ __forceinline__ float next_f16(float x, bool up) {
  const unsigned bits = __half_as_ushort(__float2half_rn(x));
  if ((bits & 0x7FFF) == 0) return __half2float(__ushort_as_half(up ? 0x0001 : 0x8001));
  const bool away = up == (bits < 0x8000);
  return __half2float(__ushort_as_half(static_cast<unsigned short>(away ? bits + 1 : bits - 1)));
}

}  // namespace hearth::sm90
