// SPDX-License-Identifier: Apache-2.0
// Whose KV pool a model uses: one for all, or its own part.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "hearth/kv/kv_pool.h"
#include "hearth/simulate/load.h"

namespace hearth {

struct SimulatedMemory {
  std::vector<std::unique_ptr<KvPool>> pools;
  struct Place {
    KvPool* pool = nullptr;
    KvModelId model = 0;
  };
  std::vector<Place> places;  // by model

  // "slab": one SlabPool for all; "static": each model a SlabPool of an equal part; "fineserve": FineServePool.
  // Errors of the pools; InvalidArgument for other names.
  static Result<SimulatedMemory> create(const Load& load, std::string_view kind);
};

}  // namespace hearth
