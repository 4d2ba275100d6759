// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/memory_account.h"

#include <algorithm>

#include "hearth/engine/step.h"

namespace hearth {

Result<int64_t> MemoryAccount::total_bytes() const {
  if (total_bytes_ > 0) return total_bytes_;
  HEARTH_TRY_ASSIGN(const int64_t available, memory_.available_bytes());
  const std::lock_guard lock(mutex_);
  return available + held_by_models() + held_by_pool();
}

Result<int64_t> MemoryAccount::free_bytes() const {
  HEARTH_TRY_ASSIGN(const int64_t available, memory_.available_bytes());
  const std::lock_guard lock(mutex_);
  // What is loaded into a room counts twice until it is there: others are told less, and never more.
  const int64_t by_device = available - rooms_bytes_;
  if (total_bytes_ == 0) return by_device;
  return std::min(by_device, total_bytes_ - held_by_models() - held_by_pool() - rooms_bytes_);
}

int64_t MemoryAccount::pool_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_by_pool();
}

int64_t MemoryAccount::model_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_by_models();
}

int64_t MemoryAccount::room_bytes() const {
  const std::lock_guard lock(mutex_);
  return rooms_bytes_;
}

int64_t MemoryAccount::held_by_pool() const {
  const auto store = pool_.lock();
  return store ? store->held_bytes.load() : 0;
}

int64_t MemoryAccount::held_by_models() const {
  int64_t bytes = 0;
  for (const Holder& holder : holders_) {
    if (!holder.served.expired()) bytes += *holder.weight_bytes;
    if (!holder.state.expired()) bytes += holder.buffer_bytes;
  }
  return bytes;
}

void MemoryAccount::set_pool(const std::shared_ptr<KvStore>& store) {
  const std::lock_guard lock(mutex_);
  pool_ = store;
}

std::shared_ptr<KvStore> MemoryAccount::pool() const {
  const std::lock_guard lock(mutex_);
  return pool_.lock();
}

void MemoryAccount::add_model(const std::shared_ptr<ModelState>& state) {
  const std::lock_guard lock(mutex_);
  holders_.push_back({state->served, state, state->weight_bytes, state->buffers.size_bytes()});
}

int64_t MemoryAccount::models() {
  const std::lock_guard lock(mutex_);
  std::erase_if(holders_, [](const Holder& h) { return h.served.expired() && h.state.expired(); });
  return std::ssize(holders_);
}

std::shared_ptr<void> MemoryAccount::reserve(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  rooms_bytes_ += bytes;
  return {nullptr, [account = shared_from_this(), bytes](void*) {
            const std::lock_guard again(account->mutex_);
            account->rooms_bytes_ -= bytes;
          }};
}

}  // namespace hearth
