// SPDX-License-Identifier: Apache-2.0
// Shared memory by the 32-bit addresses of shared_address(): for loops in which a compiler would make the address of a
// variable again each time (PTX ISA 9.0, section "red").
#pragma once

#include <cstdint>

#include "hearth/kernels/sm90/mbarrier.cuh"

namespace hearth::sm90 {

// As shared_address(), in a register that stays: the compiler does not know what it is.
__device__ __forceinline__ uint32_t kept_shared_address(const void* at) {
  uint32_t address;
  asm volatile("mov.u32 %0, %1;" : "=r"(address) : "r"(shared_address(at)));
  return address;
}
// Without a branch around it.
__device__ __forceinline__ void add_shared_if(bool wanted, uint32_t address, uint32_t value) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %0, 0;\n"
      "@p red.relaxed.cta.shared::cta.add.u32 [%1], %2;\n"
      "}\n" ::"r"(static_cast<uint32_t>(wanted)),
      "r"(address), "r"(value)
      : "memory");
}

}  // namespace hearth::sm90
