// SPDX-License-Identifier: Apache-2.0
// The kernels of order_test, seen from its host part. Tests only.
#pragma once

#include <cstdint>

#include "hearth/base/result.h"

namespace hearth::sm90 {

inline constexpr int kOrderThreads = 256;

// Where a kernel of a chain calls pdl_launch_next(): nowhere, first of all, or behind its pdl_wait().
enum class NextStarts { kAtOurEnd, kAtOurBegin, kBehindOurWait };
// When blocks of a kernel passed, in nanoseconds of the device's clock.
struct OrderTimes {
  uint64_t began, waited, ended;  // the preamble, behind pdl_wait(), behind the last store
};
// A kernel of a chain: waits, reads what the one before wrote, lets `late_ns` pass, and writes
//   out[i] = in[(i + kOrderThreads) % count] * 5 + in[i] + index, 0 <= i < count = blocks * kOrderThreads.
struct ChainStep {
  const void* in;     // uint32_t, as out
  void *out, *times;  // OrderTimes [blocks]
  int blocks, index;
  uint64_t late_ns;
  NextStarts next;
  bool pdl;  // how it is launched
};
Status start_chain_step(const ChainStep& step, void* stream);

// `rounds` times: block b waits for block b - 1's release of this round, and for block b + 1 to have read the last
// one's data, then data[b] = data[b - 1] * 3 + (1000 * round + b) * 256 + thread (block 0: as if 0 were in front).
//   data, seen [blocks][kOrderThreads] uint32_t, the latter the exclusive or of data over all rounds;
//   flags [2][blocks] uint32_t, 0 at first. Blocks run at the same time: as many as there are multiprocessors at most.
Status run_handovers(void* data, void* seen, void* flags, int blocks, int rounds, void* stream);

// Waits for what never comes, for a few seconds.
enum class EndlessWait { kFlag, kBarrier };
Status run_endless_wait(EndlessWait what, const void* zero, void* stream);

}  // namespace hearth::sm90
