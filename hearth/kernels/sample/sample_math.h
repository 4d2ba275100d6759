// SPDX-License-Identifier: Apache-2.0
// The arithmetic of sampling, scalar and exact: what docs/formats/sampling.md defines. Every operation is
// one IEEE-754 f32 operation, round to nearest even, never fused and with denormals kept, or an integer
// operation; a vector or GPU version does the same operations in the same order and so gets the same bits.
// Pure functions; any thread.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "hearth/base/random.h"
#include "hearth/kernels/sample/sample.h"

namespace hearth::sampling {

// A mass is an unnormalised probability in units of 2^-40; the most likely token has kMassOne.
inline constexpr int kMassBits = 40;
inline constexpr uint64_t kMassOne = uint64_t{1} << kMassBits;

// exp(x) for x in [kExpLow, 0]: x = n ln2 + r, n by adding and subtracting 1.5 * 2^23, ln2 split into a
// 9-bit head (n * head is exact) and a tail; exp(r) = 1 + r + r^2 q(r) with q a minimax polynomial on
// [-ln2 / 2, ln2 / 2]. Relative error below 1e-7; non-decreasing in x, found by trying every float.
inline constexpr float kExpLow = -30.0f;
inline constexpr float kExpLog2e = 0x1.715476p+0f;
inline constexpr float kExpRound = 12582912.0f;
inline constexpr float kExpLn2Head = 0.693359375f;
inline constexpr float kExpLn2Tail = -2.12194440e-4f;
inline constexpr float kExpQ[5] = {4.99999934e-1f, 1.66665204e-1f, 4.16683908e-2f, 8.36874513e-3f, 1.38145398e-3f};

inline float exp_f32(float x) {
  const float rounded = x * kExpLog2e + kExpRound;
  const float n = rounded - kExpRound;
  const float r = (x - n * kExpLn2Head) - n * kExpLn2Tail;
  float q = kExpQ[4];
  for (int i = 3; i >= 0; --i) q = q * r + kExpQ[i];
  const float p = (q * (r * r) + r) + 1.0f;
  // The low bits of `rounded` are n as an integer; p is in [0.7, 1.5], so that adding n to its exponent is safe.
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(rounded) << 23));
}

// Mass of a token with adjusted logit z where the largest is z_max: exp((z - z_max) / t) in fixed point,
// rounded to nearest even. 0 below about exp(-28.4); kMassOne for z_max itself.
inline uint64_t mass_of(float z, float z_max, float inverse_temperature) {
  const float x = std::max((z - z_max) * inverse_temperature, kExpLow);
  // Adding 2^52 leaves the rounded integer in the low bits of the double.
  const double fixed = static_cast<double>(exp_f32(x)) * 0x1p40 + 0x1p52;
  return std::bit_cast<uint64_t>(fixed) - std::bit_cast<uint64_t>(0x1p52);
}

// Tokens are ordered by this key, largest first: by logit, ties to the smaller id. -0 equals +0.
inline uint64_t order_key(float z, int32_t token) {
  const uint32_t bits = std::bit_cast<uint32_t>(z + 0.0f);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~token);
}
inline int32_t key_token(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }
inline float key_logit(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// fraction in [0, 1] as fixed point, rounded up.
inline uint64_t fraction_to_fixed(float fraction) {
  return static_cast<uint64_t>(std::ceil(static_cast<double>(fraction) * 0x1p40));
}
// min-p: the least mass that is kept.
inline uint64_t min_mass(float min_p) { return fraction_to_fixed(min_p); }
// top-p: the mass that the kept set must reach, given the mass of all candidates. At least 1, at most total.
inline uint64_t goal_of(uint64_t fixed_fraction, uint64_t total) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(fixed_fraction) * total;
  return static_cast<uint64_t>((product + (kMassOne - 1)) >> kMassBits);
}
inline uint64_t top_p_goal(float top_p, uint64_t total) { return goal_of(fraction_to_fixed(top_p), total); }

// The point of the draw, in [0, total): the token whose range of the cumulative mass, in the order of ids,
// holds the point is chosen.
inline uint64_t draw_bits(uint64_t seed, uint32_t choice, int64_t position) {
  const uint64_t p = static_cast<uint64_t>(position);
  const std::array<uint32_t, 4> bits = philox4x32({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), choice, 0},
                                                  {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<uint64_t>(bits[0]) << 32 | bits[1];
}
inline uint64_t draw_point(uint64_t bits, uint64_t total) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(bits) * total >> 64);
}
inline uint64_t draw_point(uint64_t seed, uint32_t choice, int64_t position, uint64_t total) {
  return draw_point(draw_bits(seed, choice, position), total);
}

// Adjusted logits stay finite where the raw one is.
inline float clamp_finite(float z) {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::clamp(z, -kMax, kMax);
}
inline float biased(float z, float bias) { return z == -INFINITY ? z : clamp_finite(z + bias); }
// `count` is how often the token stands in the output so far; `seen` whether it does so in prompt or output.
inline float penalised(float z, const SamplingParams& params, bool seen, uint32_t count) {
  if (z == -INFINITY) return z;
  if (seen) z = clamp_finite(z > 0 ? z / params.repetition_penalty : z * params.repetition_penalty);
  if (count > 0) {
    z = z - params.frequency_penalty * static_cast<float>(count);
    z = clamp_finite(z - params.presence_penalty);
  }
  return z;
}

// Where nothing finite is left: tells a grammar's dead end from a broken model.
inline bool leaves_a_token(const SampleRow& row, int64_t vocab) {
  for (int32_t token = 0; token < vocab; ++token) {
    if (!row.allowed.empty() && (row.allowed[static_cast<size_t>(token / 32)] >> (token % 32) & 1) == 0) continue;
    if (std::find(row.banned.begin(), row.banned.end(), token) == row.banned.end()) return true;
  }
  return false;
}

// log(sum of exp(logit - max)) from the exact sum of masses.
inline double log_total(uint64_t total) {
  constexpr double kLn2 = 0.6931471805599453;
  return std::log(static_cast<double>(total)) - kMassBits * kLn2;
}
inline float logprob_of(float logit, float max, double log_sum) {
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(max)) - log_sum);
}

}  // namespace hearth::sampling
