// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/session.h"

#include <algorithm>
#include <charconv>

#include "hearth/base/progress.h"
#include "hearth/checkpoint/hub.h"

namespace hearth {

std::unique_ptr<ThreadPool> make_pool(const ModelSettings& settings) {
  return std::make_unique<ThreadPool>(static_cast<int>(settings.threads));
}

Result<FoundModel> find_model(std::string_view typed, bool dummy) {
  return find_model(typed, Environment::process(), dummy);
}

DType activation_of(std::string_view dtype, std::string_view device) {
  if (dtype == "auto" && device.starts_with("cuda")) return DType::kBf16;
  return dtype == "bf16" || dtype == "bfloat16" ? DType::kBf16 : DType::kF32;
}

std::optional<KvFormatId> kv_format_of(std::string_view kv_cache_dtype) {
  if (kv_cache_dtype == "float32") return KvFormatId::kF32;
  if (kv_cache_dtype == "bfloat16") return KvFormatId::kBf16;
  return kv_format_from_name(kv_cache_dtype);
}

Result<const OpTable*> ops_of(std::string_view device) {
  if (device == "ref") return &ref_ops();
  if (device == "cpu") return &cpu_ops();
  const OpTable* const ops = cuda_ops();
  if (ops == nullptr) return unsupported("--device {}: this build has no CUDA", device);
  if (device.starts_with("cuda:")) {
    int number = 0;
    const std::string_view digits = device.substr(5);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size())
      return invalid_argument("--device {}: wanted cuda:N, N the number of a GPU", device);
    HEARTH_TRY(ops->choose_device(number).with_context(fmt::format("--device {}", device)));
  }
  return ops;
}

Result<std::shared_ptr<const ServedModel>> open_model(const ModelSettings& settings, ThreadPool& pool,
                                                      bool chat_template) {
  const bool dummy = settings.load_format == "dummy";
  HEARTH_TRY_ASSIGN(FoundModel found, find_model(settings.model, dummy));
  std::optional<Progress> progress;
  LoadOptions options{.activation = activation_of(settings.dtype, settings.device),
                      .dummy_weights = dummy,
                      .kv_format = kv_format_of(settings.kv_cache_dtype),
                      .chat_template = chat_template,
                      .grammars = false};
  if (!settings.quiet) {
    options.progress = [&](int64_t done, int64_t total) {
      if (!progress) progress.emplace(fmt::format("loading {}", found.name), total, Progress::Unit::kBytes);
      progress->update(done);
    };
  }
  HEARTH_TRY_ASSIGN(const OpTable* ops, ops_of(settings.device));
  HEARTH_TRY_ASSIGN(auto model, load_served_model(found.dir, found.name, *ops, options, pool));
  if (progress) progress->finish();
  return model;
}

Result<int64_t> context_limit(const std::optional<int64_t>& max_model_len, const ModelConfig& config, int64_t cap) {
  if (!max_model_len) return std::min(config.max_positions, cap);
  if (*max_model_len > config.max_positions)
    return invalid_argument("--max-model-len {} is more than the {} tokens of context that the model was made for",
                            *max_model_len, config.max_positions);
  return *max_model_len;
}

}  // namespace hearth
