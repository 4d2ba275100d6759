// SPDX-License-Identifier: Apache-2.0
// Injects outliers into a Llama checkpoint without changing what the model computes, to judge quantizers with: large
// models have outliers that small ones lack.
//   - Of every input_layernorm and post_attention_layernorm some channels are scaled up by 32 and by 64, several of
//     them within one group of 128, and the columns that read them (q, k, v; gate, up) down.
//   - Of every KV head some RoPE pairs (rows i and i + head_dim / 2 of K) are scaled up by 8 and by 16, and the rows of
//     all Q heads that meet them down.
//   I1. All factors are powers of two and every changed weight stays a normal number, so that every product and every
//       sum in f32 is what it was, bit for bit: f32 logits do not change.
//   I2. The same checkpoint, options and seed give the same bytes.
// Stateless.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/model/config.h"

namespace hearth {

struct OutlierOptions {
  uint64_t seed = 4;
  int64_t clustered = 4;  // channels of a norm within one group of 128
  int64_t scattered = 3;  // and anywhere else
  int64_t pairs = 2;      // RoPE pairs of a KV head
};

// By which powers of two a tensor's rows and columns are multiplied; empty: by 1. One-dimensional tensors have rows.
struct Exponents {
  std::vector<int> rows, columns;
};

// Exponents of all tensors that change, by name. Unsupported for a model whose norm or K is read in another way than
// Llama's; InvalidArgument for more channels or pairs than there are.
Result<std::map<std::string, Exponents>> plan_outliers(const ModelConfig& config, const OutlierOptions& options);

// Writes the changed copy of `from` to `to`, a folder that does not exist or is empty: weights in files of the same
// names, config.json with the field `injected_outliers` last, all other files as they are. Unsupported where a weight
// would leave the range of its type's normal numbers, or is quantized. After an error, `to` has no config.json.
Status inject_outliers(const std::filesystem::path& from, const std::filesystem::path& to,
                       const OutlierOptions& options);

}  // namespace hearth
