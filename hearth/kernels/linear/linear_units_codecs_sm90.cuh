// SPDX-License-Identifier: Apache-2.0
// Words of units (nibble_units.h) to operands of m16n8k16, and x to match them: E4M3 as f16, which holds it (converting in
// the loop would bound it: 16 lanes a clock), or bf16. A Codec:
//   kBf16          x is bf16, else E4M3
//   kUnit          what 1 in a sum stands for
//   State(zeros)   what it needs of a unit's rows r and r + 8
//   arrange(first, last)  of E4M3: columns 4 q to 4 q + 3 of a lane and those 16 behind, as they will be multiplied
//   kHasHalves     whether these are the first four columns and then the last, of which arrange_half() makes one
//   decode(word, zero pair, pairs)  a word's operands of two products of 16 columns
// All products are exact; their sums are f32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "hearth/kernels/sm90/mma.cuh"

namespace hearth::sm90 {

// Four of E4M3 as f16, in the two pairs that `one` and `other` choose.
__device__ __forceinline__ uint2 in_pairs(uint32_t four, uint32_t one, uint32_t other) {
  const WidePairs wide = widen_e4m3x4(four);
  return {permute_bytes(wide.low, wide.high, one), permute_bytes(wide.low, wide.high, other)};
}

// Codes that stand for themselves.
struct NoZeros {
  static constexpr uint32_t low = 0, high = 0;
  __device__ __forceinline__ explicit NoZeros(uint32_t) {}
};

// Signs and magnitudes: the magnitude in bits 10 to 8 of an f16 is that many times 2^-16.
struct SignUnits {
  static constexpr bool kBf16 = false;
  static constexpr float kUnit = 65536;
  using State = NoZeros;

  static constexpr bool kHasHalves = true;
  __device__ __forceinline__ static uint2 arrange_half(uint32_t four) { return in_pairs(four, 0x7632, 0x5410); }
  __device__ __forceinline__ static uint4 arrange(uint32_t first, uint32_t last) {
    const uint2 f = arrange_half(first), l = arrange_half(last);
    return {f.x, f.y, l.x, l.y};
  }
  // Columns 1 and 3, 0 and 2 of the first four; then of the last.
  __device__ __forceinline__ static void decode(uint32_t word, uint32_t, uint32_t (&pairs)[4]) {
    pairs[0] = word & kPair;
    pairs[1] = __funnelshift_l(word, word, 8) & kPair;
    pairs[2] = __funnelshift_r(word, word, 4) & kPair;
    pairs[3] = __funnelshift_l(word, word, 4) & kPair;
  }

 private:
  static constexpr uint32_t kPair = 0x87008700;
};

// kC4Levels of quantized_matrix.h and their negatives: 64 times a level in the lowest bits of an f16 is that many times
// 2^-24, its sign in the highest.
struct LevelUnits {
  static constexpr bool kBf16 = false;
  static constexpr float kUnit = 262144;
  using State = NoZeros;

  static constexpr bool kHasHalves = true;
  __device__ __forceinline__ static uint2 arrange_half(uint32_t four) { return in_pairs(four, 0x5410, 0x7632); }
  __device__ __forceinline__ static uint4 arrange(uint32_t first, uint32_t last) {
    const uint2 f = arrange_half(first), l = arrange_half(last);
    return {f.x, f.y, l.x, l.y};
  }
  // Columns 0 and 2, 1 and 3 of the first four; then of the last.
  __device__ __forceinline__ static void decode(uint32_t word, uint32_t, uint32_t (&pairs)[4]) {
    const uint32_t index = word & 0x77777777;
    const uint32_t first = permute_bytes(kSmall, kLarge, index), last = permute_bytes(kSmall, kLarge, index >> 16);
    const uint32_t first_signs = word & 0x80808080, last_signs = word << 4 & 0x80808080;
    pairs[0] = permute_bytes(first, first_signs, 0x6240), pairs[1] = permute_bytes(first, first_signs, 0x7351);
    pairs[2] = permute_bytes(last, last_signs, 0x6240), pairs[3] = permute_bytes(last, last_signs, 0x7351);
  }

 private:
  // 9, 26, 44, 64 and 88, 112, 144, 192.
  static constexpr uint32_t kSmall = 0x402C1A09, kLarge = 0xC0907058;
};

// Unsigned codes less a zero point, small integers, as f16 or bf16. A code in the lowest bits of 1024 in f16, or of 128
// in bf16, adds its value; taking away the same with the zero point is exact.
template <bool kIsBf16>
struct OffsetUnits {
  static constexpr bool kBf16 = kIsBf16;
  static constexpr float kUnit = 1;
  struct State {
    uint32_t low, high;  // pairs
    // Two bytes: of row r, of row r + 8.
    __device__ __forceinline__ explicit State(uint32_t zeros)
        : low(((zeros & 15) | kOne) * 0x10001u), high((zeros >> 8 | kOne) * 0x10001u) {}
  };

  static constexpr bool kHasHalves = false;
  // Each of the first four beside the one 16 behind it.
  __device__ __forceinline__ static uint4 arrange(uint32_t first, uint32_t last) {
    const WidePairs low = widen_e4m3x4(permute_bytes(first, last, 0x5140)),
                    high = widen_e4m3x4(permute_bytes(first, last, 0x7362));
    return {low.low, low.high, high.low, high.high};
  }
  __device__ __forceinline__ static void decode(uint32_t word, uint32_t zero, uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t raised = and_or(word >> 4 * i, 0x000F000F, kOne * 0x10001u);
      if constexpr (kBf16) {
        const __nv_bfloat162 value =
            __hsub2(reinterpret_cast<const __nv_bfloat162&>(raised), reinterpret_cast<const __nv_bfloat162&>(zero));
        pairs[i] = reinterpret_cast<const uint32_t&>(value);
      } else {
        const __half2 value = __hsub2(reinterpret_cast<const __half2&>(raised), reinterpret_cast<const __half2&>(zero));
        pairs[i] = reinterpret_cast<const uint32_t&>(value);
      }
    }
  }

 private:
  static constexpr uint32_t kOne = kBf16 ? 0x4300 : 0x6400;
};

}  // namespace hearth::sm90
