// SPDX-License-Identifier: Apache-2.0
// A model that a command works with: found, opened, loaded, with its tokenizer and threads. One owner; the
// main thread.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/cli/options.h"
#include "hearth/model/runner.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

// What generation_config.json says of sampling.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
};

struct Session {
  std::filesystem::path dir;
  std::string name;  // the model as people call it: org/name, or the folder's name
  Tokenizer tokenizer;
  std::shared_ptr<const Model> model;
  GenerationDefaults defaults;
  KvFormatId kv_format = KvFormatId::kF32;
  double load_seconds = 0;
  int64_t weight_bytes = 0;
};

// The threads that settings ask for.
std::unique_ptr<ThreadPool> make_pool(const ModelSettings& settings);

// Finds and loads the model, with progress on stderr unless settings.quiet. Errors name the model.
Result<Session> open_session(const ModelSettings& settings, ThreadPool& pool);

// The folder and the name of what the user typed.
struct FoundModel {
  std::filesystem::path dir;
  std::string name;
};
Result<FoundModel> find_model(std::string_view typed);

// `--max-model-len` checked against the model: InvalidArgument where it is larger than the model's
// context. Without the flag: the model's context, or `cap` where that is smaller.
Result<int64_t> context_limit(const std::optional<int64_t>& max_model_len, const ModelConfig& config, int64_t cap);

}  // namespace hearth
