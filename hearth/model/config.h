// SPDX-License-Identifier: Apache-2.0
// ModelConfig: what config.json says of a model, checked and with every default filled in. The defaults
// and rules of each architecture are data (architecture.h); a field that would change the result and is
// not supported is an error that names it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

struct Architecture;

// How the rotary frequencies are scaled beyond the context that the model was first trained with.
struct RopeScaling {
  enum class Type : uint8_t { kNone, kLinear, kLlama3, kYarn };
  Type type = Type::kNone;
  double factor = 1;
  double low_freq_factor = 1;   // llama3
  double high_freq_factor = 4;  // llama3
  double beta_fast = 32;        // yarn
  double beta_slow = 1;         // yarn
  bool truncate = true;         // yarn
  double attention_factor = 1;  // multiplies cos and sin; computed for yarn where config.json leaves it out
  int64_t original_max_position_embeddings = 0;  // llama3, yarn
};

struct ModelConfig {
  const Architecture* architecture = nullptr;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  std::vector<int64_t> windows;  // [layers] attention window in tokens, 0 for none
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
};

// Reads config.json. Unsupported for an unknown architecture or field value, InvalidArgument for values
// out of range or missing; messages name the field, the value found and what was wanted.
// Source of rules and defaults: Hugging Face transformers 5.17, configuration classes of the models.
Result<ModelConfig> parse_model_config(const nlohmann::json& config);

}  // namespace hearth
