// SPDX-License-Identifier: Apache-2.0
// KV formats as prefill's tensor cores take them (attention_bf16_prefill_sm90.cuh): what lies in a tile of keys or of
// values is exact, and what is left of a number is applied to scores and weights, in f32:
//   key = key step * (element of the tile) + key base, value likewise; steps and bases are those of a token and head.
// FP8's one scale of a head belongs to no token: it is applied to whole rows.
#pragma once

#include <cstdint>

#include "hearth/kernels/sm90/mma.cuh"

namespace hearth::sm90 {

// bf16, copied as it lies in memory.
struct PlainTiles {
  static constexpr bool kCoded = false;
  static constexpr bool kHalfScores = false;   // queries and keys in f16, else bf16
  static constexpr bool kHalfWeights = false;  // weights and values in f16, else bf16
  static constexpr bool kSteps = false, kBases = false;
};

// Codes of 16 bytes become kPieces pieces of 8 numbers of 16 bits.
struct Fp8Tiles : PlainTiles {
  static constexpr bool kCoded = true, kHalfScores = true, kHalfWeights = true;
  static constexpr int kBits = 8, kPieces = 2;
  // Of the warps that bring tiles; codes of 32 tokens are 32 of them. By ptxas 13.0 these are enough.
  static constexpr int kProducerRegisters = 64;

  static __device__ __forceinline__ uint4 keys(const uint32_t (&codes)[4], int piece) {
    const WidePairs first = widen_e4m3x4(codes[2 * piece]), second = widen_e4m3x4(codes[2 * piece + 1]);
    return {first.low, first.high, second.low, second.high};
  }
  static __device__ __forceinline__ uint4 values(const uint32_t (&codes)[4], int piece) { return keys(codes, piece); }
};

// Elements of the tiles are code - 8: -8 to 7. Values are bf16, because their weights have the step in them, which f16
// may not hold.
template <bool kAffine>
struct Int4Tiles : PlainTiles {
  static constexpr bool kCoded = true, kHalfScores = true, kSteps = true, kBases = kAffine;
  static constexpr int kBits = 4, kPieces = 4;
  static constexpr int kProducerRegisters = 48;

  static __device__ __forceinline__ uint4 keys(const uint32_t (&codes)[4], int piece) {
    const uint32_t x = codes[piece];
    return {pair_f16(x, 0x4040), pair_f16(x, 0x4141), pair_f16(x, 0x4242), pair_f16(x, 0x4343)};
  }
  static __device__ __forceinline__ uint4 values(const uint32_t (&codes)[4], int piece) {
    const uint32_t even = codes[piece] & 0x0F0F0F0F, odd = codes[piece] >> 4 & 0x0F0F0F0F;
    const uint32_t low = permute_bytes(even, odd, 0x5140), high = permute_bytes(even, odd, 0x7362);
    return {pair_bf16(low, 0x4140), pair_bf16(low, 0x4342), pair_bf16(high, 0x4140), pair_bf16(high, 0x4342)};
  }

 private:
  // 1024 + low nibble and 1024 + 16 * high nibble of a byte, then the nibbles less 8.
  static __device__ __forceinline__ uint32_t pair_f16(uint32_t codes, uint32_t selector) {
    return fma_f16x2(and_or(permute_bytes(codes, 0, selector), 0x00F0000F, 0x64006400), 0x2C003C00, 0xD480E408);
  }
  // 128 + code, then less 136.
  static __device__ __forceinline__ uint32_t pair_bf16(uint32_t codes, uint32_t selector) {
    return fma_bf16x2(permute_bytes(codes, 0x43434343, selector), 0x3F803F80, 0xC308C308);
  }
};

}  // namespace hearth::sm90
