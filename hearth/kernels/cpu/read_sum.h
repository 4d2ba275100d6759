// SPDX-License-Identifier: Apache-2.0
// The floor of every memory-bound op: a read-only sum over pieces of memory by a thread pool, each thread
// one contiguous part of their concatenation. Decode speed is stated as a share of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "hearth/base/thread_pool.h"

namespace hearth {

// The sum, modulo 2^64, of the 64-bit words of all pieces (of a piece, a rest below 8 bytes is left out).
// REQUIRES: pieces begin at multiples of 8; at most 256 threads.
uint64_t read_sum(std::span<const std::span<const std::byte>> pieces, ThreadPool& pool);

}  // namespace hearth
