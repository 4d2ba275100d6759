// SPDX-License-Identifier: Apache-2.0
// kv_codec.h for a warp: one head of K or V, in shared memory, becomes the bytes of a KV format.
//   I1. For equal numbers the bytes are the CPU's: every operation of the searches is rounded as there, and in their
//       order. A quad of lanes has the four lanes of the CPU's sums, and each quad a starting point of its own. Only
//       the sign of an FP8 NaN may differ, which is not kept by arithmetic on either machine.
#pragma once

#include <cuda_fp8.h>
#include <cfloat>
#include <cmath>

#include <cstddef>
#include <cstdint>

#include "hearth/kernels/sm90/rounded.cuh"
#include "hearth/tensor/kv_layout.h"

namespace hearth::sm90 {

inline constexpr unsigned kAllLanes = 0xFFFFFFFF;

// Levels offset + step * q for integers q of [low, high]; stored as q + bias.
struct KvGrid {
  float step = 0, offset = 0;
  float low = -7, high = 7;
  float bias = 8;
};

// The integer of [low, high] nearest to t, ties to even.
__device__ __forceinline__ float nearest_code(float t, float low, float high) {
  constexpr float kRound = 12582912.0f;
  t = t > low ? t : low;
  t = t < high ? t : high;
  return (Rounded(t) + kRound) - kRound;
}

// The sum over a quad in the CPU's order: lanes 0 and 2, lanes 1 and 3, both.
__device__ __forceinline__ float quad_sum(float x) {
  x = Rounded(x) + __shfl_xor_sync(kAllLanes, x, 2);
  return Rounded(x) + __shfl_xor_sync(kAllLanes, x, 1);
}

// Sums over a head and the codes that a grid gives it.
struct CodeSums {
  float error = 0, q = 0, qq = 0, qx = 0;
};

// All lanes of the warp; every quad for its own grid.
__device__ __forceinline__ CodeSums measure(const float* x, int n, const KvGrid& grid, int lane) {
  const float inverse_step = Rounded(1.0f) / grid.step;
  CodeSums sums;
  for (int i = lane % 4; i < n; i += 4) {
    const Rounded number = x[i], q = nearest_code((number - grid.offset) * inverse_step, grid.low, grid.high);
    const Rounded difference = q * grid.step + grid.offset - number;
    sums.error = difference * difference + sums.error;
    sums.q = q + sums.q;
    sums.qq = q * q + sums.qq;
    sums.qx = q * number + sums.qx;
  }
  return {quad_sum(sums.error), quad_sum(sums.q), quad_sum(sums.qq), quad_sum(sums.qx)};
}

// The best grid that a quad met.
struct BestGrid {
  KvGrid grid;
  float error = INFINITY;

  __device__ __forceinline__ void offer(const KvGrid& other, float other_error) {
    if (!(other_error < error)) return;
    grid = other;
    error = other_error;
  }
  // The best of `quads` quads, the first of equals, in all lanes; `fallback` where none has a finite error.
  __device__ __forceinline__ KvGrid of_warp(KvGrid fallback, int quads) const {
    BestGrid best{.grid = fallback};
    for (int quad = 0; quad < quads; ++quad) {
      KvGrid other = grid;
      other.step = __shfl_sync(kAllLanes, grid.step, 4 * quad);
      other.offset = __shfl_sync(kAllLanes, grid.offset, 4 * quad);
      other.low = __shfl_sync(kAllLanes, grid.low, 4 * quad);
      best.offer(other, __shfl_sync(kAllLanes, error, 4 * quad));
    }
    return best.grid;
  }
};

struct KvExtent {
  float low, high, sum = 0;
  bool finite = true;
};

// In the head's order, by every lane for itself: the sum's roundings and the signs of zeros depend on it.
__device__ __forceinline__ KvExtent extent_of(const float* x, int n) {
  KvExtent e{x[0], x[0]};
  for (int i = 0; i < n; ++i) {
    const float v = x[i];
    e.low = v < e.low ? v : e.low;
    e.high = e.high < v ? v : e.high;
    e.sum = Rounded(e.sum) + v;
    e.finite = e.finite && fabsf(v) <= FLT_MAX;
  }
  return e;
}

__device__ __forceinline__ float largest_of(const KvExtent& e) { return -e.low < e.high ? e.high : -e.low; }

__device__ __forceinline__ KvGrid plain_grid(const KvExtent& e) {
  return {.step = rounded_f16(Rounded(largest_of(e)) / 7.0f)};
}

// kInt4Fireq: the plain grid, and five steps of either sign, each refitted once.
__device__ __forceinline__ KvGrid signed_grid(const float* x, int n, const KvExtent& e, int lane) {
  constexpr int kQuads = 6;
  const KvGrid plain = plain_grid(e);
  if (plain.step == 0) return plain;
  const int quad = lane / 4;
  KvGrid grid = plain;
  if (quad > 0) {
    const float levels = quad == 1 ? 8.0f : quad == 2 ? 8.5f : quad == 3 ? 9.5f : quad == 4 ? -8.0f : -9.5f;
    grid.low = -8;
    grid.step = rounded_f16(Rounded(-e.low > e.high ? 1.0f : -1.0f) * largest_of(e) / levels);
  }
  BestGrid best;
  for (int pass = 0; pass < 2; ++pass) {
    const CodeSums sums = measure(x, n, grid, lane);
    if (grid.step == 0 || (quad == 0 && pass > 0)) continue;
    best.offer(grid, sums.error);
    grid.step = sums.qq > 0 ? rounded_f16(Rounded(sums.qx) / sums.qq) : 0.0f;
  }
  return best.of_warp(plain, kQuads);
}

// kInt4Saw: four ranges that cut off more and more, each refitted three times.
__device__ __forceinline__ KvGrid affine_grid(const float* x, int n, const KvExtent& e, int lane) {
  constexpr int kQuads = 4, kPasses = 3;
  KvGrid whole{.low = 0, .high = 15, .bias = 0};
  whole.offset = rounded_f16(e.low);
  if (whole.offset > e.low && whole.offset > -kMaxF16) whole.offset = next_f16(whole.offset, false);
  const float span = Rounded(e.high) - whole.offset;
  const float wanted = Rounded(span < 1e-8f ? 1e-8f : span) / 15.0f;
  whole.step = rounded_f16(wanted);
  if (whole.step < wanted && whole.step < kMaxF16) whole.step = next_f16(whole.step, true);

  const int quad = lane / 4;
  const Rounded count = static_cast<float>(n), sum = e.sum;
  const float cut = quad == 0 ? 0.0f : quad == 1 ? 0.5f : quad == 2 ? 1.0f : 2.0f;  // steps cut off at either end
  KvGrid grid = whole;
  grid.step = rounded_f16(Rounded(whole.step) * (15 - 2 * cut) / 15.0f);
  grid.offset = rounded_f16(Rounded(whole.offset) + Rounded(cut) * whole.step);
  BestGrid best;
  bool going = true;
  for (int pass = 0; pass <= kPasses; ++pass) {
    const CodeSums sums = measure(x, n, grid, lane);
    going = going && grid.step > 0;
    if (!going) continue;
    best.offer(grid, sums.error);
    const Rounded q = sums.q, spread = count * sums.qq - q * q;
    going = spread > 0;
    if (!going) continue;
    grid.step = rounded_f16((count * sums.qx - q * sum) / spread);
    grid.offset = rounded_f16((sum - q * grid.step) / count);
  }
  return best.of_warp(whole, kQuads);
}

__device__ __forceinline__ uint8_t int4_code(float x, const KvGrid& g) {
  return static_cast<uint8_t>(static_cast<int>(nearest_code((Rounded(x) - g.offset) / g.step, g.low, g.high) + g.bias));
}

template <KvFormatId kFormat>
__device__ __forceinline__ void store_int4(const float* x, int n, std::byte* codes, std::byte* steps, int lane) {
  constexpr bool kAffine = kFormat == KvFormatId::kInt4Saw;
  const KvExtent e = extent_of(x, n);
  KvGrid grid;
  if (e.finite) {
    if constexpr (kFormat == KvFormatId::kInt4) grid = plain_grid(e);
    if constexpr (kFormat == KvFormatId::kInt4Fireq) grid = signed_grid(x, n, e, lane);
    if constexpr (kAffine) grid = affine_grid(x, n, e, lane);
  }
  if (lane == 0) {
    constexpr uint16_t kNan = 0x7E00;
    auto* const to = reinterpret_cast<uint16_t*>(steps);
    to[0] = e.finite ? __half_as_ushort(__float2half_rn(grid.step)) : kNan;
    if constexpr (kAffine) to[1] = e.finite ? __half_as_ushort(__float2half_rn(grid.offset)) : kNan;
  }
  const bool coded = e.finite && grid.step != 0;
  for (int i = lane; i < n / 2; i += 32)
    codes[i] = static_cast<std::byte>(coded ? int4_code(x[2 * i], grid) | int4_code(x[2 * i + 1], grid) << 4 : 0x88);
}

// Stores x [n], in shared memory behind a __syncwarp(), at `codes` and `steps`. All lanes of a warp. `scale` is kFp8's.
template <KvFormatId kFormat>
__device__ __forceinline__ void store_kv_head(const float* x, int n, float scale, std::byte* codes, std::byte* steps,
                                              int lane) {
  if constexpr (kFormat == KvFormatId::kFp8) {
    for (int i = lane; i < n; i += 32)
      codes[i] = static_cast<std::byte>(__nv_cvt_float_to_fp8(Rounded(x[i]) / scale, __NV_SATFINITE, __NV_E4M3));
  } else {
    store_int4<kFormat>(x, n, codes, steps, lane);
  }
}

}  // namespace hearth::sm90
