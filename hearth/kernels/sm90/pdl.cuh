// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch, seen from the kernel (PTX ISA 9.0, section "griddepcontrol"). For kernels
// launched with Launch::pdl; in others both do nothing.
#pragma once

namespace hearth::sm90 {

// Waits until the kernels before this one have ended and their writes are visible. Executed by every
// thread before it touches memory that they read or write; weights may be read before.
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's blocks start as soon as all blocks of this one have come here or ended. That one
// still waits, in its pdl_wait(), for this one's end: the place decides about time, never about results.
__device__ __forceinline__ void pdl_launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace hearth::sm90
