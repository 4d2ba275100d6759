// SPDX-License-Identifier: Apache-2.0
// The kernels of order_test: what orders kernels of a stream, and blocks of a kernel.
#include "hearth/kernels/sm90/flags.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/order_test.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

// PTX ISA, "%globaltimer": the same clock on all multiprocessors.
__device__ uint64_t now_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
  return ns;
}

__global__ void __launch_bounds__(kOrderThreads) chain_kernel(const __grid_constant__ ChainStep p) {
  OrderTimes times{.began = now_ns()};
  if (p.next == NextStarts::kAtOurBegin) pdl_launch_next();
  pdl_wait();
  if (p.next == NextStarts::kBehindOurWait) pdl_launch_next();
  times.waited = now_ns();
  const int i = static_cast<int>(blockIdx.x) * kOrderThreads + threadIdx.x, count = p.blocks * kOrderThreads;
  const auto* const in = static_cast<const uint32_t*>(p.in);
  const uint32_t value = in[(i + kOrderThreads) % count] * 5 + in[i] + p.index;
  // Blocks are late by turns: what the last one writes counts too.
  while (now_ns() < times.waited + p.late_ns * (1 + blockIdx.x) / p.blocks) {}
  static_cast<uint32_t*>(p.out)[i] = value;
  __syncthreads();
  if (threadIdx.x != 0) return;
  times.ended = now_ns();
  static_cast<OrderTimes*>(p.times)[blockIdx.x] = times;
}

__global__ void __launch_bounds__(kOrderThreads)
    handover_kernel(uint32_t* data, uint32_t* seen, uint32_t* flags, int rounds) {
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x), thread = threadIdx.x;
  uint32_t *const written = flags, *const read = flags + blocks;
  uint32_t all = 0;
  for (int round = 0; round < rounds; ++round) {
    uint32_t before = 0;
    if (block > 0) {
      if (thread == 0) wait_acquire(written + block - 1, round + 1);
      __syncthreads();
      before = data[(block - 1) * kOrderThreads + thread];
      __syncthreads();
      if (thread == 0) store_release(read + block, round + 1);
    }
    if (block + 1 < blocks) {
      if (thread == 0) wait_acquire(read + block + 1, round);
      __syncthreads();
    }
    const uint32_t value = before * 3 + (1000 * round + block) * 256 + thread;
    data[block * kOrderThreads + thread] = value;
    all ^= value;
    __syncthreads();
    if (thread == 0) store_release(written + block, round + 1);
  }
  seen[block * kOrderThreads + thread] = all;
}

__global__ void __launch_bounds__(32) endless_wait_kernel(EndlessWait what, const uint32_t* zero) {
  __shared__ MBarrier barrier;
  if (threadIdx.x == 0) {
    barrier.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  if (what == EndlessWait::kBarrier) {
    barrier.wait_or_fault(0, 1);
  } else {
    wait_acquire(zero, 1, 1);
  }
}

}  // namespace

Status start_chain_step(const ChainStep& step, void* stream) {
  Launch how(dim3(static_cast<unsigned>(step.blocks)), dim3(kOrderThreads), stream);
  how.pdl = step.pdl;
  return launch(how, chain_kernel, step);
}

Status run_handovers(void* data, void* seen, void* flags, int blocks, int rounds, void* stream) {
  return launch(Launch(dim3(static_cast<unsigned>(blocks)), dim3(kOrderThreads), stream), handover_kernel,
                static_cast<uint32_t*>(data), static_cast<uint32_t*>(seen), static_cast<uint32_t*>(flags), rounds);
}

Status run_endless_wait(EndlessWait what, const void* zero, void* stream) {
  return launch(Launch(dim3(1), dim3(32), stream), endless_wait_kernel, what, static_cast<const uint32_t*>(zero));
}

}  // namespace hearth::sm90
