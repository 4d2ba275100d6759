// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/served_model.h"

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quantization.h"

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
  if (!fits) {
    const char* const wanted = std::is_same_v<T, bool> ? "boolean" : std::is_integral_v<T> ? "whole number" : "number";
    return corrupt("generation_config.json: {} is {}; wanted a {}", field, found->dump(), wanted);
  }
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

// The bitset of ids below `known`, for a vocabulary of `vocab`; empty where that is all of it.
std::vector<uint32_t> allowed_below(int64_t known, int64_t vocab) {
  std::vector<uint32_t> bits;
  if (known >= vocab) return bits;
  bits.assign(static_cast<size_t>((vocab + 31) / 32), 0);
  for (int64_t id = 0; id < known; ++id) bits[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
  return bits;
}

std::vector<int32_t> end_ids_of(const ModelConfig& config, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids(config.eos_token_ids.begin(), config.eos_token_ids.end());
  ids.insert(ids.end(), tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= config.vocab_size; });
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// What a model's folder holds, looked at before the weights, which take their time. A checkpoint, or the configuration
// of dummy weights.
struct Opened {
  std::optional<Checkpoint> checkpoint;
  ModelConfig dummy;
  std::optional<Quantization> dummy_quantization;
  Tokenizer tokenizer;
  GenerationDefaults defaults;
};

Result<Opened> open_checkpoint(const std::filesystem::path& dir) {
  HEARTH_TRY_ASSIGN(Checkpoint checkpoint, Checkpoint::open(dir));
  HEARTH_TRY_ASSIGN(Tokenizer tokenizer, Tokenizer::load(dir));
  HEARTH_TRY_ASSIGN(const GenerationDefaults defaults, read_defaults(checkpoint.generation_config()));
  return Opened{std::move(checkpoint), {}, std::nullopt, std::move(tokenizer), defaults};
}

constexpr uint64_t kDummySeed = 1;

// `path` is a folder with config.json, or such a file.
Result<Opened> open_dummy(const std::filesystem::path& path) {
  const bool is_file = path.extension() == ".json";
  const std::filesystem::path file = is_file ? path : path / "config.json";
  HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(file));
  HEARTH_TRY_ASSIGN(ModelConfig config, parse_model_config(json).with_context(file.string()));
  HEARTH_TRY_ASSIGN(Quantization quantization, Quantization::parse_file(file));
  const bool has_tokenizer = !is_file && std::filesystem::exists(path / "tokenizer.json");
  HEARTH_TRY_ASSIGN(Tokenizer tokenizer, has_tokenizer ? Tokenizer::load(path) : Tokenizer::bytes());
  return Opened{std::nullopt, std::move(config), std::move(quantization), std::move(tokenizer), {}};
}

}  // namespace

Result<std::shared_ptr<const ServedModel>> load_served_model(const std::filesystem::path& dir, std::string name,
                                                             const OpTable& ops, const LoadOptions& options,
                                                             ThreadPool& pool) {
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  HEARTH_TRY_ASSIGN(Opened opened, options.dummy_weights ? open_dummy(dir) : open_checkpoint(dir));
  Tokenizer& tokenizer = opened.tokenizer;
  std::optional<ChatTemplate> chat_template;
  if (options.chat_template && tokenizer.chat_templates().count("default") > 0) {
    HEARTH_TRY_ASSIGN(chat_template, ChatTemplate::from_tokenizer(tokenizer, "default", options.template_limits));
  }
  ModelOptions model_options;
  model_options.activation = options.activation;
  model_options.progress = options.progress;
  model_options.stop = options.stop;
  HEARTH_TRY_ASSIGN(const std::shared_ptr<const Model> model,
                    opened.checkpoint ? Model::load(*opened.checkpoint, ops, model_options, pool)
                                      : Model::dummy(opened.dummy, ops, model_options, DType::kBf16, kDummySeed, pool,
                                                     &*opened.dummy_quantization));
  const ModelConfig& config = model->config();
  if (options.max_context && (*options.max_context < 1 || *options.max_context > config.max_positions))
    return invalid_argument("a context of {} tokens; the model was made for 1 to {}", *options.max_context,
                            config.max_positions);
  const KvFormatId usual = options.activation == DType::kBf16 ? KvFormatId::kBf16 : KvFormatId::kF32;
  const KvFormatId kv_format = options.kv_format.value_or(model->kv_format().value_or(usual));
  // For the error alone: pools have blocks of their own size.
  HEARTH_TRY(KvLayout::make(kv_format, config.layers, config.kv_heads, config.head_dim, 1));
  std::vector<int32_t> end_ids = end_ids_of(config, tokenizer);
  std::optional<GrammarCompiler> grammars;
  if (options.grammars) {
    HEARTH_TRY_ASSIGN(grammars, GrammarCompiler::create(tokenizer, config.vocab_size, end_ids));
  }
  std::vector<uint32_t> allowed = allowed_below(tokenizer.vocab_size(), config.vocab_size);
  ServedModel served{
      .name = std::move(name),
      .dir = dir,
      .model = model,
      .tokenizer = std::move(tokenizer),
      .chat_template = std::move(chat_template),
      .grammars = std::move(grammars),
      .defaults = opened.defaults,
      .kv_format = kv_format,
      .max_context = options.max_context.value_or(config.max_positions),
      .end_ids = std::move(end_ids),
      .allowed = std::move(allowed),
      .weight_bytes = opened.checkpoint ? opened.checkpoint->total_bytes() : model->weights().memory.size_bytes(),
      .load_seconds = static_cast<double>(clock.now_ns() - begin_ns) * 1e-9,
      .created_s = static_cast<int64_t>(std::time(nullptr))};
  return std::make_shared<const ServedModel>(std::move(served));
}

}  // namespace hearth
