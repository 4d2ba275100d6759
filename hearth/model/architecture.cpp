// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/architecture.h"

namespace hearth {
namespace {

constexpr Architecture kArchitectures[] = {
    // Llama 1 to 3.3, and what shares its class: Yi, TinyLlama, SmolLM2, DeepSeek-R1-Distill-Llama.
    {.class_name = "LlamaForCausalLM",
     .model_type = "llama",
     .qkv_bias = Switch::kByField,
     .o_bias = Switch::kByField,
     .mlp_bias = Switch::kByField,
     .default_max_positions = 2048},
    {.class_name = "MistralForCausalLM",
     .model_type = "mistral",
     .window_rule = WindowRule::kAllLayers,
     .default_window = 4096,
     .default_kv_heads = 8,
     .default_max_positions = 131072},
    // Qwen2 and Qwen2.5.
    {.class_name = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .qkv_bias = Switch::kAlways,
     .window_rule = WindowRule::kPerLayer,
     .default_window = 4096,
     .default_kv_heads = 32,
     .default_max_positions = 32768},
    {.class_name = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .qkv_bias = Switch::kByField,
     .o_bias = Switch::kByField,
     .qk_norm = true,
     .window_rule = WindowRule::kPerLayer,
     .default_window = 4096,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_positions = 32768},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view class_name) {
  for (const Architecture& architecture : kArchitectures)
    if (architecture.class_name == class_name) return &architecture;
  return nullptr;
}

}  // namespace hearth
