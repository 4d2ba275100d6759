// SPDX-License-Identifier: Apache-2.0
// Copies by the copy engine, global to shared memory, that complete on an mbarrier (PTX ISA 9.0, sections
// "cp.async.bulk" and "cp.async.bulk.tensor"). One thread issues a copy; the barrier must expect its bytes.
// Tensor maps are made on the host (tensor_map.cuh) and passed as __grid_constant__ parameters.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "hearth/kernels/sm90/mbarrier.cuh"

namespace hearth::sm90 {

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// `bytes` contiguous bytes; addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, MBarrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}

// The same for what is read once: it leaves L2 before all else.
__device__ __forceinline__ void copy_bulk_once(void* to, const void* from, int bytes, MBarrier& barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&barrier)), "l"(policy)
      : "memory");
}

// The map's box at coordinate (x, y), x innermost. What lies outside of the tensor arrives as zeros and counts.
// `to` is a multiple of 128 bytes, of 1024 where the map swizzles 128 bytes.
__device__ __forceinline__ void copy_tensor(void* to, const CUtensorMap& map, int x, int y, MBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void copy_tensor(void* to, const CUtensorMap& map, int x, int y, int z, MBarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same for what is read once: it leaves L2 before all else.
__device__ __forceinline__ void copy_tensor_once(void* to, const CUtensorMap& map, int x, int y, MBarrier& barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void copy_tensor_once(void* to, const CUtensorMap& map, int x, int y, int z,
                                                 MBarrier& barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

// 16 bytes by an ordinary asynchronous copy (PTX ISA 9.0, section "cp.async"), zeros where `wanted` is not; addresses
// are multiples of 16. wait_copies() waits for all of the thread's own.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace hearth::sm90
