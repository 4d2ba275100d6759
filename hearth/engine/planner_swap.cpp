// SPDX-License-Identifier: Apache-2.0
// What becomes of the KV of a sequence that gives up its blocks: computed again later, or kept in host memory,
// whichever takes less time.
#include <utility>

#include "hearth/engine/planner.h"

namespace hearth {

// Before its blocks go back. The copies ride with the next step, ahead of whatever takes the blocks.
void Planner::swap_out(ModelState& model, Sequence& sequence) {
  if (!sequence.sound) return;
  const int64_t block_bytes = model.kv.layout.block_bytes(), blocks = blocks_for(sequence.fed, model.block_tokens);
  const auto at = model.store->swap.take_if_cheaper(model.cost.cost(), sequence.fed, blocks * block_bytes);
  if (!at) return;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = model.store->pool->offset_bytes(sequence.blocks[static_cast<size_t>(b)]);
    model.store->moves.push_back(
        {.move = {.from_bytes = from, .to_bytes = *at + b * block_bytes, .size_bytes = block_bytes},
         .kind = KvCopy::Kind::kOut});
  }
  sequence.swapped = SwappedKv{.at = *at, .tokens = sequence.fed};
  ++model.swapped_out;
}

// It has blocks again. What lies in host memory is free once it was read: copies keep their order.
void Planner::swap_in(ModelState& model, Sequence& sequence) {
  if (!sequence.swapped) return;
  const int64_t block_bytes = model.kv.layout.block_bytes();
  const int64_t blocks = blocks_for(sequence.swapped->tokens, model.block_tokens);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t to = model.store->pool->offset_bytes(sequence.blocks[static_cast<size_t>(b)]);
    model.store->moves.push_back(
        {.move = {.from_bytes = sequence.swapped->at + b * block_bytes, .to_bytes = to, .size_bytes = block_bytes},
         .kind = KvCopy::Kind::kIn});
  }
  drop_swapped(model, sequence);
}

void Planner::drop_swapped(ModelState& model, Sequence& sequence) {
  if (const auto swapped = std::exchange(sequence.swapped, std::nullopt)) model.store->swap.give_back(swapped->at);
}

// Copies that did not come off may have left anybody's blocks wrong, and what lies in host memory.
void Planner::lose_blocks(const KvStore& store, const Error& why) {
  for (const auto& model : models_) {
    if (model->store.get() != &store) continue;
    for (const auto& sequence : model->sequences) {
      sequence->sound = false;
      if (!sequence->ended) end(*sequence, FinishReason::kError, why);
    }
  }
  store.pool->forget_all();
}

}  // namespace hearth
