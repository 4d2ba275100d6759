// SPDX-License-Identifier: Apache-2.0
// ServedModel: everything that a request needs of its model. Immutable after load; requests hold it by
// shared_ptr to their last byte, so that a model may leave the server while its last texts are written.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/kernels/op_table.h"
#include "hearth/model/model.h"
#include "hearth/text/chat_template.h"
#include "hearth/text/grammar.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

// What generation_config.json says of sampling.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
};

struct ServedModel {
  std::string name;  // as people call it: org/name, the folder's name, or what the operator said
  std::filesystem::path dir;
  std::shared_ptr<const Model> model;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;  // of name "default"
  std::optional<GrammarCompiler> grammars;
  GenerationDefaults defaults;
  KvFormatId kv_format = KvFormatId::kF32;
  int64_t max_context = 0;        // tokens of a sequence
  std::vector<int32_t> end_ids;   // ids that end a text, ascending, below the vocabulary
  std::vector<uint32_t> allowed;  // bitset of the ids that the tokenizer has; empty: all of the model's
  int64_t weight_bytes = 0;
  double load_seconds = 0;
  int64_t created_s = 0;  // seconds since 1970 of the load
};

struct LoadOptions {
  DType activation = DType::kF32;
  // Seeded random weights for the configuration, quantized as its quantization_config says and else in bf16, whatever
  // the folder holds beside it; `dir` may be the configuration's file itself. Without tokenizer.json tokens are bytes
  // (Tokenizer::bytes()).
  bool dummy_weights = false;
  std::optional<KvFormatId> kv_format;  // unset: the checkpoint's, else that of the activations
  std::optional<int64_t> max_context;   // unset: the model's max_positions
  bool chat_template = true;            // false: neither is compiled; a broken one is then no error
  bool grammars = true;
  ChatTemplateLimits template_limits;
  LoadProgress progress;
  const std::atomic<bool>* stop = nullptr;  // once true, the load ends with Cancelled; may be null
};

// Loads the model in the Hugging Face folder `dir`. Errors of Checkpoint::open, Tokenizer::load and
// Model::load; InvalidArgument for a max_context beyond the model's or a KV format that does not suit its
// heads; Corrupt for a generation_config.json or a chat template that cannot be read.
Result<std::shared_ptr<const ServedModel>> load_served_model(const std::filesystem::path& dir, std::string name,
                                                             const OpTable& ops, const LoadOptions& options,
                                                             ThreadPool& pool);

}  // namespace hearth
