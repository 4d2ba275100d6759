// SPDX-License-Identifier: Apache-2.0
// The block's place in the grid, for kernels that want every register (PTX ISA 9.0, section "%ctaid").
#pragma once

namespace hearth::sm90 {

// blockIdx.x, read where it stands: the compiler keeps nothing that follows from it in registers meanwhile.
__device__ __forceinline__ int block_here() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

}  // namespace hearth::sm90
