// SPDX-License-Identifier: Apache-2.0
// Blocks that run at the same time and write into each other's shared memory (PTX ISA 9.0, sections "barrier.cluster",
// "mapa" and "st"). Launch::cluster says how many.
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// A barrier of all threads of all blocks, in two halves: what a thread wrote before it arrived, every thread of the
// cluster sees after it has waited. Every thread executes both, in turn.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// *at of the cluster's block `rank`, of the variable that lies at `at` in this block's shared memory. That block has
// started (a barrier says so) and not ended.
__device__ __forceinline__ void store_cluster(uint32_t* at, unsigned rank, uint32_t value) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.u32 [remote], %2;\n"
      "}\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(at))),
      "r"(rank), "r"(value)
      : "memory");
}

}  // namespace hearth::sm90
