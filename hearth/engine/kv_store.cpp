// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/kv_store.h"

#include <sys/random.h>

#include <algorithm>

namespace hearth {
namespace {

// A block that is a large part of a slab leaves a long tail: six or more in a slab.
constexpr int64_t kSlabBytes = int64_t{16} << 20, kColumns = 6;
// A pool of fewer slabs would hold few formats at once: smaller slabs then, of whole blocks.
constexpr int64_t kLeastSlabs = 16;

int64_t slab_bytes_for(int64_t pool_bytes, int64_t block_bytes) {
  int64_t slab_bytes = kSlabBytes;
  while (slab_bytes < kColumns * block_bytes) slab_bytes *= 2;
  if (pool_bytes / kLeastSlabs >= slab_bytes) return slab_bytes;
  return std::max<int64_t>(1, pool_bytes / kLeastSlabs / block_bytes) * block_bytes;
}

}  // namespace

Result<std::shared_ptr<KvStore>> KvStore::create(const Memory& memory, int64_t pool_bytes, int64_t limit_bytes,
                                                 int64_t block_bytes, bool prefix_cache) {
  const int64_t slab_bytes = slab_bytes_for(pool_bytes, block_bytes), slabs = pool_bytes / slab_bytes;
  if (slabs < 1)
    return invalid_argument("a KV pool of {} bytes holds no block: one has {} bytes", pool_bytes, block_bytes);
  SlabPoolOptions options{.slab_bytes = slab_bytes,
                          .slabs = slabs,
                          .low_slabs = slabs / 128,
                          .high_slabs = slabs / 64,
                          .prefix_cache = prefix_cache,
                          .secret = {}};
  if (getrandom(options.secret.data(), sizeof options.secret, 0) != sizeof options.secret)
    return unavailable("no random numbers for the names of prefixes");
  auto store = std::make_shared<KvStore>();
  HEARTH_TRY_ASSIGN(store->pool, SlabPool::create(options));
  store->begin_bytes = slab_bytes;
  store->limit_slabs = std::max(slabs, limit_bytes / slab_bytes);
  store->wanted_slabs = slabs;
  HEARTH_TRY_ASSIGN(store->memory,
                    memory.allocate_resizable((slabs + 1) * slab_bytes, (store->limit_slabs + 1) * slab_bytes)
                        .with_context(fmt::format("KV pool of {} slabs of {} bytes", slabs, slab_bytes)));
  HEARTH_TRY_ASSIGN(store->copies, memory.create_queue());
  store->held_bytes = store->memory.size_bytes();
  // About 100 us of an H100's memory, some milliseconds of a CPU's.
  store->max_move_bytes = memory.is_host() ? int64_t{16} << 20 : int64_t{128} << 20;
  return store;
}

Status KvStore::carry_out(const std::vector<KvCopy>& list) {
  if (list.empty()) return {};
  const auto place = [&](int64_t at) { return memory.data() + offset_bytes(at); };
  for (const auto& [move, kind] : list) {
    const auto host = [&](int64_t at) { return std::span(swap.data() + at, static_cast<size_t>(move.size_bytes)); };
    switch (kind) {
      case KvCopy::Kind::kWithin:
        HEARTH_TRY(copies->copy_within(place(move.to_bytes), place(move.from_bytes), move.size_bytes));
        break;
      case KvCopy::Kind::kOut: HEARTH_TRY(copies->copy_out(host(move.to_bytes), place(move.from_bytes))); break;
      case KvCopy::Kind::kIn: HEARTH_TRY(copies->copy_in(place(move.to_bytes), host(move.from_bytes))); break;
    }
  }
  return copies->synchronize();
}

Status KvStore::resize_memory(int64_t size_bytes) {
  const Status resized = memory.resize(size_bytes);
  held_bytes = memory.size_bytes();
  return resized;
}

}  // namespace hearth
