// SPDX-License-Identifier: Apache-2.0
// Room for models: the KV pool of a device gives what a model will take, and has what nobody else wants.
#include <algorithm>
#include <chrono>
#include <thread>

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

// The pool stays as large as it is until it is told otherwise.
Status Engine::Impl::keep_pool_size(const std::shared_ptr<KvStore>& store) {
  while (true) {
    HEARTH_TRY_ASSIGN(const bool stopped, ask([&]() -> Result<bool> {
                        planner.resize_pool(store, store->pool->slabs());
                        return !store->resizing;
                      }));
    if (stopped) return {};
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Status Engine::Impl::make_free(MemoryAccount& of, int64_t bytes, int64_t least_kv_bytes, int64_t wait_us) {
  const std::shared_ptr<KvStore> store = of.pool();
  if (store) HEARTH_TRY(keep_pool_size(store));
  HEARTH_TRY_ASSIGN(int64_t free_bytes, of.free_bytes());
  if (free_bytes >= bytes) return {};
  int64_t slabs = 0, least = 0, slab_bytes = 1;
  if (store) {
    slab_bytes = store->pool->slab_bytes();
    HEARTH_TRY_ASSIGN(const int64_t needed, ask([&]() -> Result<int64_t> {
                        slabs = store->pool->slabs();
                        return planner.least_slabs(*store);
                      }));
    least = std::max(needed, blocks_for(least_kv_bytes, slab_bytes));
  }
  const int64_t target = slabs - blocks_for(bytes - free_bytes, slab_bytes);
  if (target < least) {
    HEARTH_TRY_ASSIGN(const int64_t total, of.total_bytes());
    return resource_exhausted(
        "{} bytes do not fit: of {}, {} are free and the KV pool can give {} of its {}; models hold {}. Unload one, or "
        "put it to sleep",
        bytes, total, free_bytes, std::max<int64_t>(0, slabs - least) * slab_bytes, of.pool_bytes(), of.model_bytes());
  }
  const auto resize = [&](int64_t to) {
    return ask([&]() -> Status {
      planner.resize_pool(store, to);
      return {};
    });
  };
  HEARTH_TRY(resize(target));
  const int64_t until_ns = clock.now_ns() + wait_us * 1000;
  while (true) {
    HEARTH_TRY_ASSIGN(free_bytes, of.free_bytes());
    if (free_bytes >= bytes) return keep_pool_size(store);
    if (clock.now_ns() >= until_ns) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  HEARTH_TRY(resize(slabs));
  return resource_exhausted(
      "{} bytes did not come free within {} ms: requests still hold the KV pool, {} bytes are free", bytes,
      wait_us / 1000, free_bytes);
}

Result<MemoryRoom> Engine::Impl::make_room(const Memory& memory, const ModelNeeds& needs, int64_t wait_us) {
  MemoryAccount& of = account(memory);
  HEARTH_TRY_ASSIGN(const int64_t total, of.total_bytes());
  const int64_t own = needs.weight_bytes + needs.buffer_bytes;
  if (own + needs.least_kv_bytes > total)
    return resource_exhausted(
        "{} can never fit: {} bytes of weights, {} for its steps and at least {} of KV are {} bytes; the device has {}",
        needs.name, needs.weight_bytes, needs.buffer_bytes, needs.least_kv_bytes, own + needs.least_kv_bytes, total);
  const int64_t bytes = own + (of.pool() ? 0 : needs.least_kv_bytes);
  HEARTH_TRY(make_free(of, bytes, needs.least_kv_bytes, wait_us).with_context(needs.name));
  MemoryRoom room;
  // Whoever gives it back may have outlived the engine.
  room.held_ = std::shared_ptr<void>(nullptr, [counted = of.reserve(bytes), rings = bell](void*) mutable {
    counted.reset();
    rings->ring();
  });
  return room;
}

Result<MemoryRoom> Engine::make_room(const Memory& memory, const ModelNeeds& needs, int64_t wait_us) {
  const std::lock_guard adding(impl_->adding);
  auto room = impl_->make_room(memory, needs, wait_us);
  impl_->bell->ring();
  return room;
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
    {
      const std::lock_guard lock(adding);
      settled = give_to_pools();
    }
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
