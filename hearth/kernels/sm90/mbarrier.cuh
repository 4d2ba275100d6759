// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory, on which threads and copies arrive, and the fences that go with them (PTX ISA 9.0,
// section "mbarrier" and "Async proxy"). A phase ends when all counted arrivals and all announced bytes are there;
// phases have parity 0, 1, 0, ... A fresh barrier is in phase 0: waiting for parity 1 returns at once.
#pragma once

#include <cstdint>

#include "hearth/kernels/sm90/patience.cuh"

namespace hearth::sm90 {

// The 32-bit address that instructions want of something in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// The same, computed where it stands: of a variable's address the compiler otherwise keeps the place in the block's window
// and asks for the window at every use, which waits for 20 clocks or more.
__device__ __forceinline__ uint32_t shared_address_once(const void* at) {
  uint32_t address = shared_address(at);
  asm volatile("" : "+r"(address));
  return address;
}

struct alignas(8) MBarrier {
  uint64_t state;

  // One thread, before anyone uses it; then fence_barrier_init() and a barrier of the block.
  __device__ __forceinline__ void init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
  }
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // The same by threads that have loaded from shared memory what is overwritten once the phase has ended. `outcome`: bits
  // that depend on all these loads. Without it the last of them are still under way when ptxas (CUDA 13.0) lets the
  // thread arrive, and where several kernels or processes share a GPU, copies have overtaken them
  // (two_models_cuda_test).
  __device__ __forceinline__ void arrive_behind_loads(uint32_t outcome) {
    const uint32_t zero = outcome & threadIdx.z;  // our blocks have one dimension; ptxas does not know it
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(this) + zero) : "memory");
  }
  // One arrival, and `bytes` that copies will bring in this phase.
  __device__ __forceinline__ void arrive_and_expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
                 "r"(bytes)
                 : "memory");
  }
  // Whether the phase of this parity has ended; waits for a while, bounded by the hardware.
  __device__ __forceinline__ bool try_wait(int parity) {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(this)), "r"(parity)
        : "memory");
    return done != 0;
  }
  __device__ __forceinline__ void wait(int parity) {
    while (!try_wait(parity)) {}
  }
  // The same, but a phase that stays open ends the kernel with an error.
  __device__ __forceinline__ void wait_or_fault(int parity, uint32_t ticks = Patience::kTicks) {
    if (try_wait(parity)) return;
    for (const Patience patience(ticks); !try_wait(parity);) patience.check();
  }
};

// Makes init() visible to copies.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// After ordinary stores to shared memory that wgmma or a bulk copy reads: by every storing thread, before the barrier
// behind which they are read.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads, a multiple of 32; ids 1 to 15 (0 is __syncthreads()). PTX ISA, section "barrier".
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at it without waiting: `threads` counts those that wait and those that arrive.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Moves registers between the warpgroups of a block: all threads of one execute it. PTX ISA, section "setmaxnreg".
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace hearth::sm90
