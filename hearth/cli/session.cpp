// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/session.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"

#include "hearth/base/progress.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/hub.h"

namespace hearth {
namespace {

// A number of generation_config.json; null and absent are the same.
template <class T>
Status read_field(const nlohmann::json& config, const char* field, std::optional<T>& value) {
  const auto found = config.find(field);
  if (found == config.end() || found->is_null()) return {};
  bool fits = false;
  if constexpr (std::is_same_v<T, bool>) {
    fits = found->is_boolean();
  } else if constexpr (std::is_integral_v<T>) {
    fits = found->is_number_integer();
  } else {
    fits = found->is_number();
  }
  if (!fits)
    return corrupt("generation_config.json: {} is {}; wanted a {}", field, found->dump(),
                   std::is_same_v<T, bool> ? "boolean" : "number");
  value = found->get<T>();
  return {};
}

Result<GenerationDefaults> read_defaults(const nlohmann::json* config) {
  GenerationDefaults defaults;
  if (config == nullptr) return defaults;
  HEARTH_TRY(read_field(*config, "do_sample", defaults.do_sample));
  HEARTH_TRY(read_field(*config, "temperature", defaults.temperature));
  HEARTH_TRY(read_field(*config, "top_p", defaults.top_p));
  HEARTH_TRY(read_field(*config, "min_p", defaults.min_p));
  HEARTH_TRY(read_field(*config, "top_k", defaults.top_k));
  HEARTH_TRY(read_field(*config, "repetition_penalty", defaults.repetition_penalty));
  return defaults;
}

DType activation_of(const std::string& dtype) {
  return dtype == "bf16" || dtype == "bfloat16" ? DType::kBf16 : DType::kF32;
}

KvFormatId kv_format_of(const ModelSettings& settings) {
  const std::string& wanted = settings.kv_cache_dtype == "auto" ? settings.dtype : settings.kv_cache_dtype;
  return activation_of(wanted) == DType::kBf16 ? KvFormatId::kBf16 : KvFormatId::kF32;
}

}  // namespace

std::unique_ptr<ThreadPool> make_pool(const ModelSettings& settings) {
  return std::make_unique<ThreadPool>(static_cast<int>(settings.threads));
}

Result<FoundModel> find_model(std::string_view typed) {
  HEARTH_TRY_ASSIGN(const std::filesystem::path dir, resolve_model(typed, Environment::process()));
  std::error_code code;
  if (!std::filesystem::is_directory(std::filesystem::path(typed), code)) return FoundModel{dir, std::string(typed)};
  const std::filesystem::path whole = std::filesystem::weakly_canonical(dir, code);
  return FoundModel{dir, code ? std::string(typed) : whole.filename().string()};
}

Result<Session> open_session(const ModelSettings& settings, ThreadPool& pool) {
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  HEARTH_TRY_ASSIGN(const FoundModel found, find_model(settings.model));
  HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(found.dir));
  HEARTH_TRY_ASSIGN(Tokenizer tokenizer, Tokenizer::load(found.dir));
  HEARTH_TRY_ASSIGN(GenerationDefaults defaults, read_defaults(checkpoint.generation_config()));

  ModelOptions options;
  options.activation = activation_of(settings.dtype);
  std::optional<Progress> progress;
  if (!settings.quiet) {
    progress.emplace(fmt::format("loading {}", found.name), checkpoint.total_bytes(), Progress::Unit::kBytes);
    options.progress = [&](int64_t done, int64_t) { progress->update(done); };
  }
  const OpTable& ops = settings.device == "ref" ? ref_ops() : cpu_ops();
  HEARTH_TRY_ASSIGN(std::shared_ptr<const Model> model, Model::load(checkpoint, ops, options, pool));
  if (progress) progress->finish();
  return Session{.dir = found.dir,
                 .name = found.name,
                 .tokenizer = std::move(tokenizer),
                 .model = std::move(model),
                 .defaults = defaults,
                 .kv_format = kv_format_of(settings),
                 .load_seconds = static_cast<double>(clock.now_ns() - begin_ns) * 1e-9,
                 .weight_bytes = checkpoint.total_bytes()};
}

Result<int64_t> context_limit(const std::optional<int64_t>& max_model_len, const ModelConfig& config, int64_t cap) {
  if (!max_model_len) return std::min(config.max_positions, cap);
  if (*max_model_len > config.max_positions)
    return invalid_argument("--max-model-len {} is more than the {} tokens of context that the model was made for",
                            *max_model_len, config.max_positions);
  return *max_model_len;
}

}  // namespace hearth
