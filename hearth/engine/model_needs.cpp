// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/model_needs.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/engine/kv_store.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth {
namespace {

int64_t parameters(const ModelConfig& c) {
  const int64_t attention = c.hidden_size * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
  const int64_t ffn = 3 * c.hidden_size * c.intermediate_size;
  const int64_t vocabularies = c.tie_word_embeddings ? 1 : 2;
  return c.layers * (attention + ffn + 2 * c.hidden_size) + vocabularies * c.vocab_size * c.hidden_size;
}

// As ForwardBuffers plans them, but for kernels' scratch.
int64_t buffer_bytes(const ModelConfig& c, DType activation, const EngineOptions& engine) {
  const int64_t tokens = std::max(engine.step_tokens, engine.max_sequences);
  const int64_t columns = 2 * c.hidden_size + (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.intermediate_size;
  const int64_t rows = engine.max_sequences + 512;
  return dtype_bytes(activation, tokens * columns) +
         dtype_bytes(DType::kF32, tokens * c.head_dim + rows * c.vocab_size);
}

}  // namespace

Result<ModelNeeds> needs_of(const std::filesystem::path& dir, std::string name, const LoadOptions& load,
                            const EngineOptions& engine) {
  ModelConfig config;
  int64_t weight_bytes = 0;
  if (load.dummy_weights) {
    const std::filesystem::path file = dir.extension() == ".json" ? dir : dir / "config.json";
    HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(file));
    HEARTH_TRY_ASSIGN(config, parse_model_config(json).with_context(file.string()));
    weight_bytes = dtype_bytes(DType::kBf16, parameters(config));
  } else {
    HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(dir));
    HEARTH_TRY_ASSIGN(config, parse_model_config(checkpoint.config()).with_context(dir.string()));
    weight_bytes = checkpoint.total_bytes();
  }
  const KvFormatId usual = load.activation == DType::kBf16 ? KvFormatId::kBf16 : KvFormatId::kF32;
  HEARTH_TRY_ASSIGN(const KvLayout layout, KvLayout::make(load.kv_format.value_or(usual), config.layers,
                                                          config.kv_heads, config.head_dim, engine.block_tokens));
  const int64_t tokens = std::min(load.max_context.value_or(config.max_positions), kLeastContext);
  return ModelNeeds{.name = std::move(name),
                    .weight_bytes = weight_bytes,
                    .buffer_bytes = buffer_bytes(config, load.activation, engine),
                    .least_kv_bytes = blocks_for(tokens, engine.block_tokens) * layout.block_bytes()};
}

}  // namespace hearth
