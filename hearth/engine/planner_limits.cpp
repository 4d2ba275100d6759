// SPDX-License-Identifier: Apache-2.0
// What each model may have of the KV pool: its own limits, and an equal part of what those leave.
#include <algorithm>
#include <utility>

#include "hearth/engine/planner.h"

namespace hearth {
namespace {

constexpr int64_t kNoCap = std::numeric_limits<int64_t>::max();

int64_t block_bytes(const ModelState& model) { return model.kv.layout.block_bytes(); }
int64_t cap_blocks(const ModelState& model) {
  return model.limits.cap_bytes > 0 ? model.limits.cap_bytes / block_bytes(model) : kNoCap;
}
int64_t guaranteed_blocks(const ModelState& model) { return model.limits.guarantee_bytes / block_bytes(model); }
int64_t guaranteed_slabs(const ModelState& model) {
  return blocks_for(guaranteed_blocks(model), model.store->pool->columns(model.kv_model));
}

// One of `parts` equal parts of the pool, in blocks of which a slab holds `columns`.
Result<KvLimits> fixed_part(const KvPoolStats& pool, int64_t parts, int64_t columns) {
  if (std::ssize(pool.models) >= parts)
    return resource_exhausted("the KV pool is divided in {} fixed parts, and each of them is a model's", parts);
  const int64_t blocks = pool.slabs / parts * columns;
  if (blocks < 1)
    return resource_exhausted("one of {} fixed parts of a KV pool of {} slabs of {} bytes holds no block of the model",
                              parts, pool.slabs, pool.slabs > 0 ? pool.pool_bytes / pool.slabs : 0);
  return KvLimits{.guarantee = blocks, .kept = blocks, .reserved = blocks, .cap = blocks};
}

}  // namespace

Result<int64_t> Planner::add_to_store(ModelState& model) {
  KvStore& store = *model.store;
  KvModelSpec spec{
      .name = model.served->name, .block_tokens = model.block_tokens, .block_bytes = block_bytes(model), .limits = {}};
  if (store.parts > 0) {
    HEARTH_TRY_ASSIGN(spec.limits,
                      fixed_part(store.pool->stats(), store.parts, store.pool->slab_bytes() / spec.block_bytes));
  }
  HEARTH_TRY_ASSIGN(model.kv_model, store.pool->add_model(spec));
  store.members.push_back(&model);
  // Who fell asleep at work has none now.
  model.share.busy = model.awaits_lift = false;
  // Who slept has limits, and what it is guaranteed may be promised to others by now.
  Status fits = check_guarantees(store);
  if (fits) {
    share_store(store, {});
    fits = check_requests(store);
  }
  if (!fits) {
    leave_store(model);
    return fits.error();
  }
  return model.kv_tokens.load();
}

void Planner::leave_store(ModelState& model) {
  KvStore& store = *model.store;
  const KvModelStats counted = store.pool->stats(model.kv_model);
  model.kv_before.asked_blocks += counted.asked_blocks;
  model.kv_before.hit_blocks += counted.hit_blocks;
  model.kv_before.evicted_blocks += counted.evicted_blocks;
  store.pool->remove_model(model.kv_model);
  std::erase(store.members, &model);
  model.kv_model = -1;
  model.kv_tokens = 0;
  share_store(store, {});
  const std::lock_guard lock(stats_.mutex);
  tell(model, model.told);
}

Status Planner::retire(ModelState& model, std::promise<void> left) {
  if (model.pinned) return invalid_argument("{} is pinned", model.served->name);
  // It was removed just before: nobody would keep the promise.
  if (model.kv_model < 0) return not_found("the engine has no model '{}'", model.served->name);
  model.leaving = true;
  model.left = std::move(left);
  return {};
}

bool Planner::stay(ModelState& model) {
  if (model.kv_model < 0) return false;
  model.leaving = model.removed;
  model.left.reset();
  return true;
}

// Blocks that are lent to nobody, whether the model is short of them or not.
int64_t Planner::least_kept(const ModelState& model) const {
  if (!model.pinned) return 0;
  return std::min(guaranteed_blocks(model), model.store->pool->limits(model.kv_model).guarantee);
}

// A model is guaranteed what set_limits() said, the others the same part of what is left, and each may borrow what
// others do not use. One at a time may be guaranteed more, as many blocks as its next sequence needs; the others then
// share the rest.
void Planner::share_store(KvStore& store, std::optional<Lifted> lifted) {
  SlabPool& pool = *store.pool;
  const int64_t models = std::ssize(store.members);
  if (models < 2) lifted.reset();
  store.lifted = lifted ? lifted->model : -1;
  const int64_t slabs = std::min(pool.slabs(), store.wanted_slabs);
  int64_t left = slabs, sharing = 0, lifted_slabs = 0;
  for (const ModelState* const m : store.members) {
    left -= guaranteed_slabs(*m);
    sharing += m->limits.guarantee_bytes == 0 && m->kv_model != store.lifted;
  }
  for (const ModelState* const m : store.members) {
    if (m->kv_model != store.lifted) continue;
    const int64_t more = blocks_for(lifted->blocks, pool.columns(m->kv_model)) - guaranteed_slabs(*m);
    const int64_t given = std::clamp<int64_t>(more, 0, std::max<int64_t>(left, 0));
    lifted_slabs = guaranteed_slabs(*m) + given;
    left -= given;
  }
  const int64_t part = sharing > 0 ? std::max<int64_t>(left, 0) / sharing : 0;
  // First all that shrink, so that the sum never exceeds the pool.
  for (const bool grows : {false, true}) {
    if (store.parts > 0) break;  // theirs for good
    for (const ModelState* const m : store.members) {
      const KvLimits old = pool.limits(m->kv_model);
      KvLimits limits{.guarantee = part * pool.columns(m->kv_model), .kept = old.kept, .cap = cap_blocks(*m)};
      if (m->limits.guarantee_bytes > 0) limits.guarantee = guaranteed_blocks(*m);
      if (m->kv_model == store.lifted) limits.guarantee = lifted_slabs * pool.columns(m->kv_model);
      limits.guarantee = std::min(limits.guarantee, limits.cap);
      if (!grows) limits.guarantee = std::min(limits.guarantee, old.guarantee);
      limits.kept = std::min(limits.kept, limits.guarantee);
      if (m->pinned) limits.reserved = std::min(guaranteed_blocks(*m), limits.guarantee);
      if (!grows) limits.reserved = std::min({limits.reserved, old.reserved, limits.kept});
      limits.kept = std::max(limits.kept, limits.reserved);
      const Status set = pool.set_limits(m->kv_model, limits);
      HEARTH_CHECK(set.has_value(), "parts of a KV pool: {}", set.error().message);
    }
  }
  for (ModelState* const m : store.members) m->kv_tokens = pool.most(m->kv_model, slabs) * m->block_tokens;
}

// ---- as somebody wants it

Status Planner::set_limits(ModelState& model, const MemoryLimits& limits, bool pinned) {
  KvStore& store = *model.store;
  const std::string& name = model.served->name;
  if (model.kv_model < 0) return unavailable("{} is not serving", name);
  if (store.parts > 0)
    return unsupported("{}: the KV pool is divided in {} fixed parts, which no limits change", name, store.parts);
  if (limits.guarantee_bytes < 0 || limits.cap_bytes < 0)
    return invalid_argument("{}: a guarantee of {} bytes and a cap of {}; wanted 0 or more", name,
                            limits.guarantee_bytes, limits.cap_bytes);
  if (limits.cap_bytes > 0 && limits.cap_bytes < block_bytes(model))
    return invalid_argument("{}: a cap of {} bytes is less than one KV block of {}", name, limits.cap_bytes,
                            block_bytes(model));
  if (limits.cap_bytes > 0 && limits.guarantee_bytes > limits.cap_bytes)
    return invalid_argument("{}: a guarantee of {} bytes is more than the cap of {}", name, limits.guarantee_bytes,
                            limits.cap_bytes);
  const MemoryLimits old = std::exchange(model.limits, limits);
  const bool was_pinned = std::exchange(model.pinned, pinned);
  Status fits = check_guarantees(store);
  if (fits) {
    share_store(store, {});
    fits = check_requests(store);
  }
  if (fits) {
    inbox_->poke();  // who could not go on may now
    return {};
  }
  model.limits = old;
  model.pinned = was_pinned;
  share_store(store, {});
  return fits;
}

// Whether the pool has what models are guaranteed, by their limits.
Status Planner::check_guarantees(const KvStore& store) const {
  int64_t wanted = 0;
  std::string who;
  for (const ModelState* const m : store.members) {
    if (m->limits.guarantee_bytes == 0) continue;
    wanted += guaranteed_slabs(*m);
    who += fmt::format("{}{} {} bytes in {} slabs", who.empty() ? "" : ", ", m->served->name, m->limits.guarantee_bytes,
                       guaranteed_slabs(*m));
  }
  if (const int64_t slabs = std::min(store.pool->slabs(), store.wanted_slabs); wanted > slabs)
    return resource_exhausted("guarantees of {} slabs ({}) are more than the KV pool's {} slabs of {} bytes", wanted,
                              who, slabs, store.pool->slab_bytes());
  return {};
}

// Whether each request under way could go on alone.
Status Planner::check_requests(const KvStore& store) const {
  for (const ModelState* const m : store.members) {
    const int64_t most = store.pool->most(m->kv_model, std::min(store.pool->slabs(), store.wanted_slabs));
    const int64_t needed = m->needed_blocks();
    if (needed > most)
      return resource_exhausted("a request of {} under way needs {} KV blocks of {} bytes; {} would be left for it",
                                m->served->name, needed, block_bytes(*m), most);
  }
  return {};
}

}  // namespace hearth
