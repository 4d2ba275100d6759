// SPDX-License-Identifier: Apache-2.0
// MemoryAccount: who holds which part of one device's memory: models (weights and step buffers), the KV pool, and rooms
// that were made for models that are being loaded.
//   I1. Where the device has a total that the operator named, what is held never exceeds it by what the engine takes:
//       the KV pool grows into what is left, and gives it back before somebody else takes it.
// Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/engine/kv_store.h"
#include "hearth/engine/served_model.h"
#include "hearth/memory/memory.h"

namespace hearth {

class MemoryAccount : public std::enable_shared_from_this<MemoryAccount> {
 public:
  // `total_bytes` 0: what the device has.
  MemoryAccount(const Memory& memory, int64_t total_bytes) : memory_(memory), total_bytes_(total_bytes) {}

  const Memory& memory() const { return memory_; }
  // What models, the pool and rooms can have together.
  Result<int64_t> total_bytes() const;
  // Of it, what nobody has.
  Result<int64_t> free_bytes() const;
  int64_t pool_bytes() const;
  // Weights and step buffers of models whose memory has not come back.
  int64_t model_bytes() const;
  int64_t room_bytes() const;

  void set_pool(const std::shared_ptr<KvStore>& store);
  std::shared_ptr<KvStore> pool() const;
  // The model counts until both are gone. Once.
  void add_model(const std::shared_ptr<ModelState>& state);
  // Models whose memory is not all back.
  int64_t models();

  // Counts `bytes` as held until the last copy of the token goes.
  std::shared_ptr<void> reserve(int64_t bytes);

 private:
  struct Holder {
    std::weak_ptr<const ServedModel> served;
    std::weak_ptr<ModelState> state;
    std::shared_ptr<const std::atomic<int64_t>> weight_bytes;
    int64_t buffer_bytes = 0;
  };
  int64_t held_by_models() const;
  int64_t held_by_pool() const;

  const Memory& memory_;
  const int64_t total_bytes_;
  mutable std::mutex mutex_;
  std::weak_ptr<KvStore> pool_;  // guarded by mutex_, as the rest
  std::vector<Holder> holders_;
  int64_t rooms_bytes_ = 0;
};

}  // namespace hearth
