// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch, seen from the kernel (PTX ISA 9.0, section "griddepcontrol"). For kernels
// launched with Launch::pdl; in others both do nothing. A kernel may start while several before it have not ended:
//   I1. Before its pdl_wait() no thread reads what a kernel of the stream writes, nor writes what one reads or writes:
//       activations, scratch, KV, results. Weights may be read, and a step's arrays, which are there before its first
//       kernel, past L1 (past_l1()); L2 may be asked for both.
//   I2. No kernel ends without a pdl_wait() in one of its threads: its end says that all before it have ended, and the
//       one behind it relies on that.
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// Waits until the kernels before this one have ended and their writes are visible. Executed by every
// thread before it touches memory that they read or write; weights may be read before.
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's blocks start as soon as all blocks of this one have come here or ended. That one
// still waits, in its pdl_wait(), for this one's end: the place decides about time, never about results. First thing in
// the kernels between linears: these ask for their weights while those run. That works because linears have
// one block a multiprocessor and leave room for small ones beside it (kSharedLeft); with many small blocks a linear's
// would gather on the multiprocessors that are done first and leave others idle.
__device__ __forceinline__ void pdl_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Shared memory that a linear leaves of a multiprocessor's, so that blocks of the small kernels behind it wait beside
// it.
inline constexpr int kSharedLeft = 16 * 1024;

}  // namespace hearth::sm90
