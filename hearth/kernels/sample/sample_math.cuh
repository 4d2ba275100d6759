// SPDX-License-Identifier: Apache-2.0
// sample_math.h on a GPU: the same operations in the same order, each rounded by itself, so the same bits. What is done
// once a row (random bits, logarithms) the host does. Device code, no state.
#pragma once

#include <cstdint>

#include "hearth/kernels/sample/sample_math.h"
#include "hearth/kernels/sm90/rounded.cuh"

namespace hearth::sampling_sm90 {

using sm90::Rounded;

// exp(at) * 2^kBits. Scaling is exact: adding kBits, an even number, to n's rounding constant does it, and n does not
// change by that. For `at` from -33 on; what comes out below is undefined.
template <int kBits>
__device__ __forceinline__ float scaled_exp_f32(float at) {
  static_assert(kBits % 2 == 0);
  constexpr float c2 = sampling::kExpQ[0], c3 = sampling::kExpQ[1], c4 = sampling::kExpQ[2], c5 = sampling::kExpQ[3],
                  c6 = sampling::kExpQ[4];
  const Rounded x = at;
  const Rounded rounded = x * sampling::kExpLog2e + (sampling::kExpRound + kBits);
  const Rounded n = rounded - (sampling::kExpRound + kBits);
  // n * head is exact, so that one rounding is as good as two.
  const Rounded r = Rounded(__fmaf_rn(-n.value, sampling::kExpLn2Head, x.value)) - n * sampling::kExpLn2Tail;
  Rounded q = c6;
  q = q * r + c5;
  q = q * r + c4;
  q = q * r + c3;
  q = q * r + c2;
  const Rounded p = (q * (r * r) + r) + 1.0f;
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(rounded) << 23));
}

// Conversions round to nearest even.
__device__ __forceinline__ uint64_t mass_of(float z, float z_max, float inverse_temperature) {
  const float x = fmaxf(__fmul_rn(__fsub_rn(z, z_max), inverse_temperature), sampling::kExpLow);
  return __float2ull_rn(scaled_exp_f32<sampling::kMassBits>(x));
}
// The same for logits from `floor` on, 0 for others. REQUIRES: (floor - z_max) * inverse_temperature is -32.5 or more.
__device__ __forceinline__ uint64_t mass_from(float floor, float z, float z_max, float inverse_temperature) {
  const float mass = scaled_exp_f32<sampling::kMassBits>(__fmul_rn(__fsub_rn(z, z_max), inverse_temperature));
  return __float2ull_rn(z >= floor ? mass : 0.0f);
}

__device__ __forceinline__ uint32_t ordered_bits(float z) {
  const uint32_t bits = __float_as_uint(__fadd_rn(z, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t order_key(float z, int token) {
  return static_cast<uint64_t>(ordered_bits(z)) << 32 | static_cast<uint32_t>(~token);
}
__device__ __forceinline__ int key_token(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }
__device__ __forceinline__ float key_logit(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ uint64_t goal_of(uint64_t fixed_fraction, uint64_t total) {
  const uint64_t low = fixed_fraction * total, rounded = low + (sampling::kMassOne - 1);
  const uint64_t high = __umul64hi(fixed_fraction, total) + (rounded < low ? 1 : 0);
  return high << (64 - sampling::kMassBits) | rounded >> sampling::kMassBits;
}
__device__ __forceinline__ uint64_t draw_point(uint64_t bits, uint64_t total) { return __umul64hi(bits, total); }

__device__ __forceinline__ float clamp_finite(float z) {
  constexpr float kMax = 0x1.fffffep127f;  // the largest finite one
  return fminf(fmaxf(z, -kMax), kMax);
}
__device__ __forceinline__ float biased(float z, float bias) {
  return z == -INFINITY ? z : clamp_finite(__fadd_rn(z, bias));
}
struct Penalties {
  float repetition, presence, frequency;
};
__device__ __forceinline__ float penalised(float z, const Penalties& p, uint32_t count) {
  if (z == -INFINITY) return z;
  z = clamp_finite(z > 0 ? __fdiv_rn(z, p.repetition) : __fmul_rn(z, p.repetition));
  if (count > 0) {
    z = __fsub_rn(z, __fmul_rn(p.frequency, __uint2float_rn(count)));
    z = clamp_finite(__fsub_rn(z, p.presence));
  }
  return z;
}

}  // namespace hearth::sampling_sm90
