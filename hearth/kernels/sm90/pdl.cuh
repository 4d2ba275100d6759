// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch, seen from the kernel (PTX ISA 9.0, section "griddepcontrol"). For kernels
// launched with Launch::pdl; in others both do nothing. A kernel may start while several before it have not ended:
//   I1. Before its pdl_wait() no thread reads what a kernel of the stream writes, nor writes what one reads or writes:
//       activations, scratch, KV, results. Weights may be read, and a step's arrays, which are there before its first
//       kernel; L2 may be asked for both.
//   I2. No kernel ends without a pdl_wait() in one of its threads: its end says that all before it have ended, and the
//       one behind it relies on that.
#pragma once

namespace hearth::sm90 {

// Waits until the kernels before this one have ended and their writes are visible. Executed by every
// thread before it touches memory that they read or write; weights may be read before.
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's blocks start as soon as all blocks of this one have come here or ended. That one
// still waits, in its pdl_wait(), for this one's end: the place decides about time, never about results. Kernels of a
// decode step come here first, so that the next linear's blocks ask for weights while small kernels run; a kernel whose
// waiting successors would crowd out blocks of its own comes here late.
__device__ __forceinline__ void pdl_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace hearth::sm90
