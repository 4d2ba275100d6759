// SPDX-License-Identifier: Apache-2.0
// Products on the tensor cores by a warpgroup, four consecutive warps from a multiple of four on (PTX ISA 9.0, section
// "Asynchronous warpgroup level matrix instructions"). The wrappers for each shape are in wgmma_shapes.cuh.
//   D: thread t holds in d[4 j + c] row 16 (t / 32 % 4) + t % 32 / 4 + 8 (c / 2), column 8 j + 2 (t % 4) + c % 2.
//   A from registers: of each 16 bytes of K, a[0] and a[1] hold the 4 bytes from 4 (t % 4) on of rows as above, a[2]
//     and a[3] those from 16 + 4 (t % 4) on; 32 bytes of K an instruction in all types.
//   Order: wgmma_begin(), instructions, wgmma_commit(), and wgmma_wait<n>() before accumulators are read, A's registers
//     written or shared operands overwritten. ptxas must see straight code in between, or it serialises (C7510, C7512).
#pragma once

#include <cstdint>

#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/wgmma_shapes.cuh"

namespace hearth::sm90 {

// Where byte `column` of row `row` lies in a tile of rows of 128 bytes with the 128-byte swizzle, as tensor maps write
// it. The tile begins at a multiple of 1024 bytes.
__device__ __forceinline__ uint32_t swizzled_offset(uint32_t row, uint32_t column) {
  return row * 128 + (column ^ (row % 8 * 16));
}

// The descriptor of an operand that lies in such tiles: 14 bits of address, the two strides and the swizzle.
//   Along K (rows of the tile are rows of the operand, 128 bytes of K): `group_bytes` from 8 rows to the next 8, 1024;
//     `tile_bytes` is not used. 32 bytes of K further: add 32 to the address; 128: the next tile's.
//   Along N (rows of the tile are steps of K, 128 bytes of N; bf16 alone): `group_bytes` from 8 steps of K to the next
//     8, 1024; `tile_bytes` from a tile to that with the next 64 columns. 16 steps of K further: add 2048.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address, uint32_t tile_bytes = 16,
                                                  uint32_t group_bytes = 1024) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t{(group_bytes & 0x3FFFF) >> 4} << 32 | uint64_t{(tile_bytes & 0x3FFFF) >> 4} << 16 |
         (address & 0x3FFFF) >> 4;
}

// Before the first instruction, and wherever registers of one have been written since.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending of the groups that were committed last are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// wgmma_f16 or wgmma_bf16, A from shared memory or registers.
template <bool kF16, int kN, int kBMajor = 0, class A>
__device__ __forceinline__ void wgmma_16_bits(float (&d)[kN / 2], const A& a, uint64_t b, bool accumulate) {
  if constexpr (kF16) {
    wgmma_f16<kN, kBMajor>(d, a, b, accumulate);
  } else {
    wgmma_bf16<kN, kBMajor>(d, a, b, accumulate);
  }
}

// Keeps arithmetic above a wait that follows: ptxas 13.0 moves waits up over all that does not touch the registers of
// the product, and then nothing runs beside it. `never` depends on the arithmetic, and is false.
__device__ __forceinline__ void keep_before_wait(bool never) {
  if (never) asm volatile("nanosleep.u32 32;");
}

// Keeps the compiler from moving work on these registers over the place: what an instruction in flight writes is not in
// the compiler's sight.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin_registers(int32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}
template <int kRows, int kCount>
__device__ __forceinline__ void pin_registers(uint32_t (&x)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows * kCount; ++i) asm volatile("" : "+r"(x[i / kCount][i % kCount])::"memory");
}

}  // namespace hearth::sm90
