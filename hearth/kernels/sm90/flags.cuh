// SPDX-License-Identifier: Apache-2.0
// Words in global memory by which a block tells others of the device that what it wrote before is there (PTX ISA 9.0,
// section "Memory Consistency Model"). Writers of other threads of the block come before by a barrier of the block, and
// its readers behind.
#pragma once

#include <cstdint>

#include "hearth/kernels/sm90/patience.cuh"

namespace hearth::sm90 {

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(uint32_t* at, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

// Until the flag has this value; what its writer released is there then.
__device__ __forceinline__ void wait_acquire(const uint32_t* at, uint32_t value, uint32_t ticks = Patience::kTicks) {
  if (load_acquire(at) == value) return;
  for (const Patience patience(ticks); load_acquire(at) != value;) patience.check();
}

}  // namespace hearth::sm90
