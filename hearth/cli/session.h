// SPDX-License-Identifier: Apache-2.0
// The model that a command works with: found by what the user typed, and loaded. Stateless; the main thread.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/checkpoint/hub.h"
#include "hearth/cli/options.h"
#include "hearth/engine/served_model.h"

namespace hearth {

// The threads that settings ask for.
std::unique_ptr<ThreadPool> make_pool(const ModelSettings& settings);

// Finds and loads the model, with progress on stderr unless settings.quiet. `chat_template`: compile it too.
// Errors name the model.
Result<std::shared_ptr<const ServedModel>> open_model(const ModelSettings& settings, ThreadPool& pool,
                                                      bool chat_template = false);

// The types that --dtype and --kv-cache-dtype name; nullopt for auto.
DType activation_of(std::string_view dtype, std::string_view device = "cpu");
std::optional<KvFormatId> kv_format_of(std::string_view kv_cache_dtype);

// The ops of --device, whose GPU is then that of the process. Unsupported where the build lacks them, and what
// choose_device() says.
Result<const OpTable*> ops_of(std::string_view device);

// find_model() of hub.h in this process's environment.
Result<FoundModel> find_model(std::string_view typed, bool dummy = false);

// `--max-model-len` checked against the model: InvalidArgument where it is larger than the model's
// context. Without the flag: the model's context, or `cap` where that is smaller.
Result<int64_t> context_limit(const std::optional<int64_t>& max_model_len, const ModelConfig& config, int64_t cap);

}  // namespace hearth
