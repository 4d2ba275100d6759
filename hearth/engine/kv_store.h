// SPDX-License-Identifier: Apache-2.0
// KvStore: the KV memory that all models of one device share, and the pool that says who has which part of it.
//   I1. The first slab's worth of bytes belongs to no sequence: padded steps write there, of every model. It stays
//       where it is, as the address of all does, when the pool is resized: recorded steps name both.
//   I2. A copy that was decided on is in `moves` until a step takes it, and is carried out before that step: all in the
//       order in which they were decided.
// The pool, `members`, `moves` and the pieces of `swap` are the planner's, `copies` the step thread's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/engine/swap_space.h"
#include "hearth/kv/slab_pool.h"
#include "hearth/memory/memory.h"

namespace hearth {

// A pool is never made so small that a sequence of so many tokens of any of its models would not fit alone.
inline constexpr int64_t kLeastContext = 2048;

inline int64_t blocks_for(int64_t tokens, int64_t block_tokens) { return (tokens + block_tokens - 1) / block_tokens; }

struct ModelState;

// Within the pool, or to and from host memory: there the offset is one of the swap space.
struct KvCopy {
  KvMove move;
  enum class Kind : uint8_t { kWithin, kOut, kIn } kind = Kind::kWithin;
};

struct KvStore {
  Buffer memory;
  int64_t begin_bytes = 0;     // where the pool begins in it, behind I1
  int64_t max_move_bytes = 0;  // of one step
  int64_t limit_slabs = 0;     // that there are addresses for
  std::unique_ptr<SlabPool> pool;
  int64_t parts = 0;                 // > 0: so many models have an equal part each, and nothing is lent
  std::vector<ModelState*> members;  // models that have blocks of the pool
  KvModelId lifted = -1;             // who is guaranteed more than its part, for a while
  KvModelId lifted_before = -1;      // who was the last time
  // The pool goes there, bite by bite, as soon as nobody's blocks are in the way.
  int64_t wanted_slabs = 0;
  bool resizing = false;                // a bite is with the step thread
  std::atomic<int64_t> held_bytes = 0;  // of memory; any thread reads it
  std::vector<KvCopy> moves;
  SwapSpace swap;
  std::unique_ptr<Queue> copies;

  // Of `pool_bytes` where `memory` is, which may become `limit_bytes`; slabs are made for blocks of `block_bytes`, those
  // of the first model. Errors of the memory, and InvalidArgument where not one block fits.
  static Result<std::shared_ptr<KvStore>> create(const Memory& memory, int64_t pool_bytes, int64_t limit_bytes,
                                                 int64_t block_bytes, bool prefix_cache);
  // The offset in the memory of what lies at this one in the pool.
  int64_t offset_bytes(int64_t in_pool) const { return begin_bytes + in_pool; }
  // Of the memory that has so many slabs.
  int64_t bytes_for(int64_t slabs) const { return begin_bytes + slabs * pool->slab_bytes(); }
  // Carries copies out and waits for them. By the step thread, as the next.
  Status carry_out(const std::vector<KvCopy>& list);
  Status resize_memory(int64_t size_bytes);
};

}  // namespace hearth
