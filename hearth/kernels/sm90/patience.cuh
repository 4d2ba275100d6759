// SPDX-License-Identifier: Apache-2.0
// Waits that end: what a bug of ours never brings ends the kernel with an error after some seconds, so that the host
// finds the device lost and does not hang. The error is a store to an address that no memory has: a `trap` in a kernel
// that keeps products on their way makes ptxas 13.0 serialise its wgmma (C7512).
#pragma once

#include <cstdint>

namespace hearth::sm90 {

class Patience {
 public:
  // 35 to 40 seconds of an H100: no kernel waits for so long, under compute-sanitizer neither.
  static constexpr uint32_t kTicks = 16;

  __device__ __forceinline__ explicit Patience(uint32_t ticks = kTicks) : ticks_(ticks), begin_(now()) {}
  // Between two looks at what is waited for.
  __device__ __forceinline__ void check() const {
    if (now() - begin_ > ticks_) asm volatile("st.global.u32 [%0], %1;" ::"l"(uint64_t{0}), "r"(0) : "memory");
  }

 private:
  // Ticks of 2^32 cycles (PTX ISA 9.0, section "%clock_hi").
  __device__ __forceinline__ static uint32_t now() {
    uint32_t ticks;
    asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(ticks));
    return ticks;
  }
  const uint32_t ticks_, begin_;
};

}  // namespace hearth::sm90
