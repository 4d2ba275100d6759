// SPDX-License-Identifier: Apache-2.0
// Words of units (nibble_units.h) to the registers that wgmma takes as A (wgmma.cuh). An instruction (slice) takes one
// word, of bf16 half of one, of the rows r and r + 8: its registers 0 and 2 come from a word of row r, 1 and 3 from one
// of row r + 8.
//
// A Codec:
//   kBf16               the type of x
//   kUnit               what a decoded number is multiplied with, beside its group's scale
//   State               what decoding needs of a row and group, nothing without kHasState
//   State(zero, tables) of its zero point and fill_zero_tables()
//   decode(word, slice, state, first, last): registers 0 and 2, or 1 and 3, of a slice
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "hearth/kernels/sm90/mma.cuh"

namespace hearth::sm90 {

// -7 to 7: bits 2 to 0 of a code are those of an E4M3 number too small to be normal, or of the first that are.
struct SignMagnitudeFragments {
  static constexpr bool kBf16 = false, kHasState = false;
  static constexpr float kUnit = 512;  // E4M3's smallest number is 2^-9
  struct State {
    __device__ __forceinline__ State(uint32_t, const uint4*) {}
  };

  __device__ __forceinline__ static void decode(uint32_t word, int, const State&, uint32_t& first, uint32_t& last) {
    first = word & 0x87878787;
    last = __funnelshift_r(word, word, 4) & 0x87878787;
  }
};

// kC4Levels of quantized_matrix.h and their negatives.
struct LevelFragments {
  static constexpr bool kBf16 = false, kHasState = false;
  static constexpr float kUnit = 1;
  // 9/64, 13/32, 11/16, 1 and 11/8, 7/4, 9/4, 3.
  static constexpr uint32_t kSmall = 0x38332D21, kLarge = 0x44413E3B;
  struct State {
    __device__ __forceinline__ State(uint32_t, const uint4*) {}
  };

  __device__ __forceinline__ static void decode(uint32_t word, int, const State&, uint32_t& first, uint32_t& last) {
    const uint32_t index = word & 0x77777777;
    first = permute_bytes(kSmall, kLarge, index) | (word & 0x80808080);
    last = permute_bytes(kSmall, kLarge, index >> 16) | (word << 4 & 0x80808080);
  }
};

// q - zero, -15 to 15, by a table of 16 E4M3 numbers.
struct OffsetE4m3Fragments {
  static constexpr bool kBf16 = false, kHasState = true;
  static constexpr float kUnit = 1;
  struct State {
    uint4 table;
    __device__ __forceinline__ State(uint32_t zero, const uint4* tables) : table(tables[zero]) {}
  };

  __device__ __forceinline__ static void decode(uint32_t codes, int, const State& state, uint32_t& first,
                                                uint32_t& last) {
    const uint32_t index = codes & 0x77777777, raised = codes << 4;
    first = look_up(state.table, index, permute_bytes(raised, codes, 0xD9C8));
    last = look_up(state.table, index >> 16, permute_bytes(raised, codes, 0xFBEA));
  }

 private:
  // `upper`: bytes of ones where the code is 8 or more.
  __device__ __forceinline__ static uint32_t look_up(const uint4& table, uint32_t index, uint32_t upper) {
    return (permute_bytes(table.x, table.y, index) & ~upper) | (permute_bytes(table.z, table.w, index) & upper);
  }
};

// q - zero in bf16: a code in the lowest bits of 128 adds its value; taking away 128 + zero is exact.
struct OffsetBf16Fragments {
  static constexpr bool kBf16 = true, kHasState = true;
  static constexpr float kUnit = 1;
  struct State {
    uint32_t taken;
    __device__ __forceinline__ State(uint32_t zero, const uint4*) : taken((0x4300 | zero) * 0x10001u) {}
  };

  __device__ __forceinline__ static void decode(uint32_t word, int slice, const State& state, uint32_t& first,
                                                uint32_t& last) {
    const uint32_t codes = word >> slice % 2 * 8;
    first = pair(codes, state.taken);
    last = pair(codes >> 4, state.taken);
  }

 private:
  __device__ __forceinline__ static uint32_t pair(uint32_t codes, uint32_t taken) {
    const uint32_t raised = (codes & 0x000F000F) | 0x43004300;
    const __nv_bfloat162 value =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(raised), reinterpret_cast<const __nv_bfloat162&>(taken));
    return reinterpret_cast<const uint32_t&>(value);
  }
};

// E4M3 of q - zero for q from 0 on, a table for each zero point; by the first 256 threads of a block, before a barrier.
__device__ __forceinline__ void fill_zero_tables(uint4* tables) {
  const int zero = static_cast<int>(threadIdx.x) / 16, q = static_cast<int>(threadIdx.x) % 16;
  if (zero < 16)
    reinterpret_cast<uint8_t*>(tables)[threadIdx.x] =
        __nv_cvt_float_to_fp8(static_cast<float>(q - zero), __NV_SATFINITE, __NV_E4M3);
}

}  // namespace hearth::sm90
