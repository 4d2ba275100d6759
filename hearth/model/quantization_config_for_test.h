// SPDX-License-Identifier: Apache-2.0
// Test support: quantization_config of config.json, as published checkpoints have it.
#pragma once

#include <nlohmann/json.hpp>

namespace hearth::testing {

// compressed-tensors' FP8: a scale for each row of weights and each token.
inline nlohmann::json fp8_per_token() {
  return {{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights",
               {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", "channel"}, {"dynamic", false}}},
              {"input_activations",
               {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}}}}}}},
          {"ignore", {"lm_head"}}};
}

}  // namespace hearth::testing
