// SPDX-License-Identifier: Apache-2.0
// Architectures as data. All of them are one transformer block with switches; a new member of the family
// is a new row in architecture.cpp (docs/guides/adding-an-architecture.md).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace hearth {

// Whether a layer has a part: never, always, or as a field of config.json says.
enum class Switch : uint8_t { kNever, kAlways, kByField };

// Where the sliding attention window of a layer comes from.
enum class WindowRule : uint8_t {
  kNone,       // no window; a `sliding_window` is an error
  kAllLayers,  // `sliding_window` for every layer, null for none, a default where it is absent
  kPerLayer,   // in force with `use_sliding_window`: `layer_types`, or layers from `max_window_layers` on
};

struct Architecture {
  std::string_view class_name;       // in config.json's `architectures`
  std::string_view model_type;       // config.json's `model_type`
  Switch qkv_bias = Switch::kNever;  // kByField: `attention_bias`
  Switch o_bias = Switch::kNever;    // kByField: `attention_bias`
  Switch mlp_bias = Switch::kNever;  // kByField: `mlp_bias`
  bool qk_norm = false;              // RMSNorm over each head of Q and K before RoPE
  WindowRule window_rule = WindowRule::kNone;
  int64_t default_window = 0;         // where `sliding_window` is absent
  int64_t default_kv_heads = 0;       // where `num_key_value_heads` is absent; 0: as many as heads
  int64_t default_head_dim = 0;       // where `head_dim` is absent; 0: hidden_size / heads
  int64_t default_max_positions = 0;  // where `max_position_embeddings` is absent
};

std::span<const Architecture> architectures();
// By class name, or null.
const Architecture* find_architecture(std::string_view class_name);

}  // namespace hearth
