// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/memory.h"

#include <algorithm>

#include "hearth/kv/fineserve_pool.h"
#include "hearth/kv/slab_pool.h"

namespace hearth {
namespace {

KvModelSpec spec_of(const LoadModel& model, const Load& load) {
  return {.name = model.name,
          .block_tokens = load.block_tokens,
          .block_bytes = model.kv_token_bytes * load.block_tokens,
          .limits = {}};
}

Result<std::unique_ptr<SlabPool>> slab_pool(const Load& load, int64_t bytes, int64_t low, int64_t high) {
  return SlabPool::create({.slab_bytes = load.slab_bytes,
                           .slabs = bytes / load.slab_bytes,
                           .low_slabs = low,
                           .high_slabs = high,
                           .prefix_cache = false});
}

}  // namespace

Result<SimulatedMemory> SimulatedMemory::create(const Load& load, std::string_view kind) {
  SimulatedMemory memory;
  if (kind == "fineserve") {
    std::vector<FineServeModel> models;
    for (const LoadModel& model : load.models)
      models.push_back({.spec = spec_of(model, load), .layers = model.layers, .rate = 1});
    HEARTH_TRY_ASSIGN(auto pool, FineServePool::create(load.pool_bytes, std::move(models), load.seed));
    for (size_t m = 0; m < load.models.size(); ++m) memory.places.push_back({pool.get(), static_cast<KvModelId>(m)});
    memory.pools.push_back(std::move(pool));
    return memory;
  }
  if (kind != "slab" && kind != "static") return invalid_argument("no memory '{}': slab, static, fineserve", kind);
  const int64_t slabs = load.pool_bytes / load.slab_bytes;
  // As many as one slab for each format being opened at once, and as many again.
  const int64_t low = std::min<int64_t>(8, slabs / 64), high = 2 * low;
  if (kind == "slab") {
    HEARTH_TRY_ASSIGN(auto pool, slab_pool(load, load.pool_bytes, low, high));
    memory.pools.push_back(std::move(pool));
  }
  for (const LoadModel& model : load.models) {
    if (kind == "static") {
      HEARTH_TRY_ASSIGN(auto pool, slab_pool(load, load.pool_bytes / std::ssize(load.models), 0, 0));
      memory.pools.push_back(std::move(pool));
    }
    HEARTH_TRY_ASSIGN(const KvModelId id, memory.pools.back()->add_model(spec_of(model, load)));
    memory.places.push_back({memory.pools.back().get(), id});
  }
  return memory;
}

}  // namespace hearth
