// SPDX-License-Identifier: Apache-2.0
// KvStore: the KV memory that all models of one device share, and the pool that says who has which part of it.
//   I1. A slab's worth of bytes behind the pool belongs to no sequence: padded steps write there, of every model.
//   I2. A move that the pool has decided is in `moves` until a step takes it, and is carried out before that step.
// The pool, `members` and `moves` are the planner's, `copies` the step thread's.
#pragma once

#include <memory>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/kv/slab_pool.h"
#include "hearth/memory/memory.h"

namespace hearth {

inline int64_t blocks_for(int64_t tokens, int64_t block_tokens) { return (tokens + block_tokens - 1) / block_tokens; }

struct ModelState;

struct KvStore {
  Buffer memory;
  int64_t dummy_block = 0;     // I1: its offset
  int64_t max_move_bytes = 0;  // of one step
  std::unique_ptr<SlabPool> pool;
  int64_t parts = 0;                 // > 0: so many models have an equal part each, and nothing is lent
  std::vector<ModelState*> members;  // models that have blocks of the pool
  KvModelId lifted = -1;             // who is guaranteed more than its part, for a while
  std::vector<KvMove> moves;
  std::unique_ptr<Queue> copies;

  // Of `pool_bytes` where `memory` is; slabs are made for blocks of `block_bytes`, those of the first model. Errors of
  // the memory, and InvalidArgument where not one block fits.
  static Result<std::shared_ptr<KvStore>> create(const Memory& memory, int64_t pool_bytes, int64_t block_bytes,
                                                 bool prefix_cache);
  // Carries moves out and waits for them.
  Status carry_out(const std::vector<KvMove>& list);
};

}  // namespace hearth
