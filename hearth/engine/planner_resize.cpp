// SPDX-License-Identifier: Apache-2.0
// The KV pool gives memory to models' weights and takes it back, between two steps and never much at once: a bite is a
// message to the step thread that moves what is live behind the pool's new end and gives the pages there back, or takes
// pages for what is new.
#include <algorithm>
#include <utility>

#include "hearth/base/log.h"
#include "hearth/engine/planner.h"

namespace hearth {

Planner::KvFloor Planner::kv_floor(const KvStore& store, const ModelNeeds& newcomer) const {
  const int64_t slab_bytes = store.pool->slab_bytes();
  if (store.parts > 0) return {.guaranteed_slabs = store.pool->slabs(), .context_slabs = 0};  // fixed parts stay
  const auto guaranteed = [](const ModelState* m) {
    return blocks_for(m->limits.guarantee_bytes / m->kv.layout.block_bytes(), m->store->pool->columns(m->kv_model));
  };
  KvFloor floor{.guaranteed_slabs = blocks_for(newcomer.guaranteed_kv_bytes, slab_bytes), .context_slabs = 0};
  // Where the operator wanted a smaller pool, that has to do.
  const auto least = [&](int64_t slabs) { return std::min(slabs, store.limit_slabs); };
  int64_t kept = 0;
  for (const ModelState* const m : store.members) {
    floor.guaranteed_slabs += guaranteed(m);
    if (m->pinned) kept += guaranteed(m);
  }
  floor.context_slabs = std::max<int64_t>(1, kept + least(blocks_for(newcomer.least_kv_bytes, slab_bytes)));
  for (const ModelState* const m : store.members) {
    const int64_t tokens = std::min(m->served->max_context, kLeastContext);
    const int64_t slabs = least(blocks_for(blocks_for(tokens, m->block_tokens), store.pool->columns(m->kv_model)));
    // What it keeps itself is of use to it.
    const int64_t own = m->pinned ? guaranteed(m) : 0;
    floor.context_slabs = std::max(floor.context_slabs, kept - own + std::max(own, slabs));
  }
  return floor;
}

void Planner::resize_pool(const std::shared_ptr<KvStore>& store, int64_t slabs) {
  store->wanted_slabs = std::clamp<int64_t>(slabs, 0, store->limit_slabs);
  share_store(*store, {});
  if (std::ranges::find(resizing_, store) == resizing_.end()) resizing_.push_back(store);
  inbox_->poke();
}

bool Planner::launch_bite() {
  std::erase_if(resizing_, [](const auto& s) { return !s->resizing && s->wanted_slabs == s->pool->slabs(); });
  if (lost_ || stopping_.load()) return false;
  for (const auto& store : resizing_) {
    if (store->resizing) continue;
    std::unique_ptr<Step> step = plan_bite(store);
    if (!step) continue;
    store->resizing = bitten_ = true;
    ++in_flight_;
    under_way_.launched(clock_.now_ns() / 1000, 0);
    steps_.launch(std::move(step));
    return true;
  }
  return false;
}

// Null: what is live, or what a request will need, is in the way.
std::unique_ptr<Step> Planner::plan_bite(const std::shared_ptr<KvStore>& store) {
  SlabPool& pool = *store->pool;
  const int64_t slabs = pool.slabs(), most = std::max<int64_t>(1, store->max_move_bytes / pool.slab_bytes());
  const int64_t to = std::clamp(store->wanted_slabs, slabs - most, slabs + most);
  std::vector<KvCopy> moves;
  if (to < slabs) {
    const auto needs = [&](const ModelState* m) { return m->needed_blocks() > pool.most(m->kv_model, to); };
    if (std::ranges::any_of(store->members, needs)) return nullptr;
    auto moved = pool.resize(to);
    if (!moved) return nullptr;
    // Behind those that were decided before and are not yet carried out.
    moves = std::exchange(store->moves, {});
    for (const KvMove& move : *moved) moves.push_back({.move = move});
  }
  std::unique_ptr<Step> step = spare_step();
  step->store = store;
  step->moves = std::move(moves);
  step->memory_bytes = store->bytes_for(to);
  return step;
}

void Planner::collect_bite(std::unique_ptr<Step> step) {
  KvStore& store = *step->store;
  store.resizing = false;
  if (!step->status) {
    SPDLOG_ERROR("the KV pool stays at {} slabs: {}", store.pool->slabs(), step->status.error().message);
    if (!step->moved && !step->moves.empty()) lose_blocks(store, step->status.error());
    if (step->status.error().code == ErrorCode::kDeviceLost && !lost_) lose_device(*step);
    store.wanted_slabs = store.pool->slabs();
  }
  // Pages come before the pool knows of them, and go after.
  const int64_t slabs = (store.held_bytes - store.begin_bytes) / store.pool->slab_bytes();
  if (slabs > store.pool->slabs()) {
    const auto moves = store.pool->resize(slabs);
    HEARTH_CHECK(moves && moves->empty(), "a KV pool that grows moves blocks");
  }
  share_store(store, {});
  step->clear();
  spare_steps_.push_back(std::move(step));
}

}  // namespace hearth
