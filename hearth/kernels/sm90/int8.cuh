// SPDX-License-Identifier: Apache-2.0
// Rounding of activations to INT8 with a scale for a group of columns (linear/act_quantize.h), in registers: the same
// bits.
#pragma once

#include "hearth/kernels/sm90/e4m3.cuh"

namespace hearth::sm90 {

__device__ __forceinline__ float int8_scale_of(unsigned largest) { return act_scale_of_bits(largest, 127.0f); }

// Rounds numbers of a group whose magnitudes are at most `largest` (its bits) by the group's scale.
class Int8Rounding {
 public:
  __device__ __forceinline__ Int8Rounding(float scale, unsigned largest) : scale_(scale) {
    reciprocal_ = __frcp_rn(scale);
    is_quick_ = scale >= kLeastQuickScale && scale <= kLargestQuickScale &&
                __fmul_rn(__uint_as_float(largest), reciprocal_) <= 0x1p20f;
  }

  // Codes of four neighbours, two pairs of bf16.
  __device__ __forceinline__ uint32_t operator()(uint32_t low, uint32_t high) const {
    const float x[4] = {__uint_as_float(low << 16), __uint_as_float(low & 0xFFFF0000u), __uint_as_float(high << 16),
                        __uint_as_float(high & 0xFFFF0000u)};
    if (isnan(scale_)) return 0;
    // 1.5 * 2^23: the integer nearest to the quotient, ties to even, is in the lowest bits of the sum. No quotient is
    // beyond 127 by half a unit.
    constexpr float kShift = 12582912.0f;
    uint32_t sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sum[i] = __float_as_uint(__fadd_rn(is_quick_ ? quotient(x[i]) : __fdiv_rn(x[i], scale_), kShift));
    return __byte_perm(__byte_perm(sum[0], sum[1], 0x0040), __byte_perm(sum[2], sum[3], 0x0040), 0x5410);
  }

 private:
  // As E4m3Rounding's, of both signs.
  __device__ __forceinline__ float quotient(float x) const {
    const float guess = __fmul_rn(x, reciprocal_);
    return __fmaf_rn(__fmaf_rn(-guess, scale_, x), reciprocal_, guess);
  }

  float scale_, reciprocal_;
  bool is_quick_;
};

}  // namespace hearth::sm90
