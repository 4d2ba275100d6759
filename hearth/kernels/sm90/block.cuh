// SPDX-License-Identifier: Apache-2.0
// The block's place in the grid and the thread's in its block, for kernels that want every register (PTX ISA 9.0,
// sections "%ctaid", "%tid" and "elect.sync").
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// blockIdx.x, read where it stands: the compiler keeps nothing that follows from it in registers meanwhile.
__device__ __forceinline__ int block_here() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

// threadIdx.x, in the same way.
__device__ __forceinline__ int thread_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// True in one lane of the warp, all of which execute it.
__device__ __forceinline__ bool elect_lane() {
  uint32_t chosen;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(chosen));
  return chosen != 0;
}

}  // namespace hearth::sm90
