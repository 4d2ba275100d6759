// SPDX-License-Identifier: Apache-2.0
// Room for models: the KV pool of a device gives what a model will take, and has what nobody else wants.
#include <algorithm>
#include <chrono>
#include <thread>

#include "hearth/base/caught.h"
#include "hearth/base/log.h"
#include "hearth/engine/engine_impl.h"

namespace hearth {

MemoryAccount& Engine::Impl::account(const Memory& memory) {
  const std::lock_guard lock(mutex);
  for (const auto& known : accounts)
    if (&known->memory() == &memory) return *known;
  return *accounts.emplace_back(std::make_shared<MemoryAccount>(memory, options.memory_bytes));
}

std::vector<std::shared_ptr<MemoryAccount>> Engine::Impl::all_accounts() {
  const std::lock_guard lock(mutex);
  return accounts;
}

Result<std::unique_lock<std::mutex>> Engine::Impl::begin_adding(const Waiting& waiting) {
  std::unique_lock lock(adding, std::try_to_lock);
  while (!lock) {
    HEARTH_TRY(waiting.again([] { return "another model that is being loaded or woken"; }));
    (void)lock.try_lock();
  }
  return lock;
}

// The pool stays as large as it is until it is told otherwise.
Status Engine::Impl::keep_pool_size(const std::shared_ptr<KvStore>& store, const Waiting& waiting) {
  while (true) {
    HEARTH_TRY_ASSIGN(const bool stopped, ask([&]() -> Result<bool> {
                        planner.resize_pool(store, store->pool->slabs());
                        return !store->resizing;
                      }));
    if (stopped) return {};
    HEARTH_TRY(waiting.again([] { return "a step behind which the KV pool changes its size"; }));
  }
}

Result<Engine::Impl::Plan> Engine::Impl::plan_room(const MemoryAccount& of, const ModelNeeds& needs) {
  Plan plan;
  HEARTH_TRY_ASSIGN(plan.free_bytes, of.free_bytes());
  if (const std::shared_ptr<KvStore> store = of.pool()) {
    HEARTH_TRY(ask([&]() -> Status {
      plan.slabs = store->pool->slabs();
      plan.slab_bytes = store->pool->slab_bytes();
      plan.most_slabs = options.memory_bytes > 0 ? store->limit_slabs : plan.slabs;
      plan.floor = planner.kv_floor(*store, needs);
      return {};
    }));
  }
  return plan;
}

Status Engine::Impl::make_free(MemoryAccount& of, int64_t bytes, const ModelNeeds& needs, const Waiting& waiting) {
  const std::shared_ptr<KvStore> store = of.pool();
  if (store) HEARTH_TRY(keep_pool_size(store, waiting));
  HEARTH_TRY_ASSIGN(Plan plan, plan_room(of, needs));
  const bool has_kv = !store || plan.slabs >= plan.floor.slabs();
  if (has_kv && plan.free_bytes >= bytes) return {};
  const int64_t target = plan.slabs_without(bytes);
  if (store && target < plan.floor.slabs() && target >= plan.slabs)
    return resource_exhausted(
        "no room for its KV: guarantees of {} slabs, or {} for the least context beside what pinned models keep; the "
        "KV "
        "pool can have {} slabs of {} bytes. Lower a guarantee, unload a model, or put one to sleep",
        plan.floor.guaranteed_slabs, plan.floor.context_slabs, target, plan.slab_bytes);
  if (store && target < plan.floor.slabs()) {
    HEARTH_TRY_ASSIGN(const int64_t total, of.total_bytes());
    return resource_exhausted(
        "{} bytes do not fit: of {}, {} are free and the KV pool can give {} of its {}, of which {} slabs of {} bytes "
        "stay (guarantees have {}, the least context beside what is pinned {}); models hold {}. Unload one, or put it "
        "to sleep",
        bytes, total, plan.free_bytes, std::max<int64_t>(0, plan.slabs - plan.floor.slabs()) * plan.slab_bytes,
        of.pool_bytes(), plan.floor.slabs(), plan.slab_bytes, plan.floor.guaranteed_slabs, plan.floor.context_slabs,
        of.model_bytes());
  }
  if (!store) {
    HEARTH_TRY_ASSIGN(const int64_t total, of.total_bytes());
    return resource_exhausted("{} bytes do not fit: of {}, {} are free; models hold {}. Unload one, or put it to sleep",
                              bytes, total, plan.free_bytes, of.model_bytes());
  }
  const auto resize = [&](int64_t to) {
    return ask([&]() -> Status {
      planner.resize_pool(store, to);
      return {};
    });
  };
  const int64_t before = plan.slabs;
  HEARTH_TRY(resize(target));
  const auto done = [&]() -> Result<bool> {
    HEARTH_TRY_ASSIGN(plan, plan_room(of, needs));
    return plan.free_bytes >= bytes && plan.slabs >= plan.floor.slabs();
  };
  while (true) {
    HEARTH_TRY_ASSIGN(const bool there, done());
    if (there) return keep_pool_size(store, waiting);
    Status goes_on = waiting.again([&] {
      return fmt::format("{} bytes, of which {} are free: requests hold the rest in the KV pool", bytes,
                         plan.free_bytes);
    });
    if (goes_on) continue;
    HEARTH_TRY(resize(before));
    return goes_on;
  }
}

Result<MemoryRoom> Engine::Impl::make_room(const Memory& memory, const ModelNeeds& needs, const Waiting& waiting) {
  MemoryAccount& of = account(memory);
  HEARTH_TRY_ASSIGN(const int64_t total, of.total_bytes());
  const int64_t own = needs.weight_bytes + needs.buffer_bytes;
  if (own + needs.least_kv_bytes > total)
    return resource_exhausted(
        "{} can never fit: {} bytes of weights, {} for its steps and at least {} of KV are {} bytes; the device has {}",
        needs.name, needs.weight_bytes, needs.buffer_bytes, needs.least_kv_bytes, own + needs.least_kv_bytes, total);
  const int64_t bytes = own + (of.pool() ? 0 : needs.least_kv_bytes);
  HEARTH_TRY(make_free(of, bytes, needs, waiting).with_context(needs.name));
  MemoryRoom room;
  // Whoever gives it back may have outlived the engine.
  room.held_ = std::shared_ptr<void>(nullptr, [counted = of.reserve(bytes), rings = bell](void*) mutable {
    counted.reset();
    rings->ring();
  });
  return room;
}

Result<MemoryRoom> Engine::make_room(const Memory& memory, const ModelNeeds& needs, const Patience& patience) {
  const Waiting waiting(impl_->clock, patience);
  HEARTH_TRY_ASSIGN(const std::unique_lock<std::mutex> alone, impl_->begin_adding(waiting).with_context(needs.name));
  auto room = caught([&] { return impl_->make_room(memory, needs, waiting); });
  impl_->bell->ring();
  return room;
}

Result<int64_t> Engine::lacking_bytes(const Memory& memory, const ModelNeeds& needs, const Patience& patience) {
  const Waiting waiting(impl_->clock, patience);
  HEARTH_TRY_ASSIGN(const std::unique_lock<std::mutex> alone, impl_->begin_adding(waiting).with_context(needs.name));
  const MemoryAccount& of = impl_->account(memory);
  // While the pool changes its size, pages are neither free nor its own.
  const std::shared_ptr<KvStore> store = of.pool();
  if (store) HEARTH_TRY(impl_->keep_pool_size(store, waiting));
  const auto planned = impl_->plan_room(of, needs);
  impl_->bell->ring();
  HEARTH_TRY_ASSIGN(const Impl::Plan plan, planned);
  const bool has_pool = store != nullptr;
  const int64_t bytes = needs.weight_bytes + needs.buffer_bytes + (has_pool ? 0 : needs.least_kv_bytes);
  if (!has_pool) return std::max<int64_t>(0, bytes - plan.free_bytes);
  return std::max<int64_t>(0, plan.floor.slabs() - plan.slabs_without(bytes)) * plan.slab_bytes;
}

bool Engine::Impl::give_to_pools() {
  bool settled = true;
  for (const auto& of : all_accounts()) {
    const std::shared_ptr<KvStore> store = of->pool();
    if (!store) continue;
    // By the planner's thread, so that the pool stays as it is meanwhile.
    const Status given = ask([&]() -> Status {
      settled &= !store->resizing;
      if (store->resizing) return {};
      HEARTH_TRY_ASSIGN(const int64_t free_bytes, of->free_bytes());
      const int64_t slabs = store->pool->slabs(), more = free_bytes / store->pool->slab_bytes();
      if (more > 0 && slabs < store->limit_slabs) planner.resize_pool(store, slabs + more);
      return {};
    });
    if (!given) SPDLOG_WARN("{}: the KV pool stays as it is: {}", of->memory().name(), given.error().message);
  }
  return settled;
}

void Engine::Impl::keep() {
  bool goes_on = true;
  while (goes_on) {
    // Counted first: what goes while the pools are given to is given next time.
    int64_t held = 0, there = 0;
    for (const auto& of : all_accounts()) held += of->models();
    {
      const std::lock_guard lock(mutex);
      there = std::ssize(entries);
    }
    bool settled = true;
    const Status kept = caught([&]() -> Status {
      const std::lock_guard lock(adding);
      settled = give_to_pools();
      return {};
    });
    if (!kept) SPDLOG_WARN("KV pools stay as they are: {}", kept.error().message);
    // Nobody rings when a model's memory is back, a moment after the last of its users is gone, nor when another
    // program's is.
    const bool expects = !settled || held > there;
    goes_on = bell->wait(expects ? std::chrono::milliseconds(20) : std::chrono::milliseconds(1000), clock);
  }
}

std::vector<DeviceMemoryStats> Engine::memory_stats() const {
  std::vector<DeviceMemoryStats> stats;
  for (const auto& of : impl_->all_accounts()) {
    const auto total = of->total_bytes();
    stats.push_back({.device = std::string(of->memory().name()),
                     .total_bytes = total ? *total : 0,
                     .model_bytes = of->model_bytes(),
                     .room_bytes = of->room_bytes(),
                     .pool_bytes = of->pool_bytes()});
  }
  return stats;
}

}  // namespace hearth
