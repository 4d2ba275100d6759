// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/quote.h"
#include "hearth/model/architecture.h"

namespace hearth {
namespace {

using nlohmann::json;

// Fields that change what a model computes and that hearth does not have, with the values at which they
// change nothing. A field that is absent or null is fine.
struct RefusedField {
  std::string_view name;
  json harmless;  // null: any value is refused
};

const std::vector<RefusedField>& refused_fields() {
  static const std::vector<RefusedField> fields = {
      {"per_layer_config", nullptr},
      {"attention_chunk_size", nullptr},
      {"partial_rotary_factor", 1.0},
      {"attn_logit_softcapping", nullptr},
      {"final_logit_softcapping", nullptr},
      {"query_pre_attn_scalar", nullptr},
      {"residual_multiplier", 1.0},
      {"embedding_multiplier", 1.0},
      {"attention_multiplier", nullptr},
      {"logits_scaling", 1.0},
      {"num_experts", 0},
      {"num_local_experts", 0},
      {"rope_interleaved", false},
      {"use_qk_norm", false},
      {"lm_head_bias", false},
      {"logit_scale", 1.0},
      {"clip_qkv", nullptr},
      {"no_rope_layers", nullptr},
      {"scale_emb", 1.0},
      {"scale_depth", nullptr},
      {"use_bidirectional_attention", false},
      {"is_causal", true},
      {"attention_sink", nullptr},
      {"n_routed_experts", 0},
      {"compression_config", nullptr},
      {"alibi", false},
      {"add_cross_attention", false},
      {"is_encoder_decoder", false},
  };
  return fields;
}

// Reads fields of one JSON object; every error names the field, what was found and what was wanted.
class Fields {
 public:
  explicit Fields(const json& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  // The field's value, or null where it is absent or null.
  const json* get(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool is_null(const char* name) const { return object_.contains(name) && object_.at(name).is_null(); }

  Result<int64_t> integer(const char* name, int64_t low, int64_t high, std::optional<int64_t> otherwise) const {
    const json* value = get(name);
    if (!value) {
      if (otherwise) return *otherwise;
      return invalid_argument("config.json: '{}{}' is missing; wanted an integer in {}..{}", prefix_, name, low, high);
    }
    if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{1} << 62) ||
        value->get<int64_t>() < low || value->get<int64_t>() > high)
      return invalid_argument("config.json: '{}{}' is {}; wanted an integer in {}..{}", prefix_, name, shown(*value),
                              low, high);
    return value->get<int64_t>();
  }

  Result<double> number(const char* name, double low, double high, std::optional<double> otherwise) const {
    const json* value = get(name);
    if (!value) {
      if (otherwise) return *otherwise;
      return invalid_argument("config.json: '{}{}' is missing; wanted a number in {}..{}", prefix_, name, low, high);
    }
    if (!value->is_number() || !(value->get<double>() >= low && value->get<double>() <= high))
      return invalid_argument("config.json: '{}{}' is {}; wanted a number in {}..{}", prefix_, name, shown(*value), low,
                              high);
    return value->get<double>();
  }

  Result<bool> boolean(const char* name, bool otherwise) const {
    const json* value = get(name);
    if (!value) return otherwise;
    if (!value->is_boolean())
      return invalid_argument("config.json: '{}{}' is {}; wanted true or false", prefix_, name, shown(*value));
    return value->get<bool>();
  }

  static std::string shown(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
  }

 private:
  const json& object_;
  std::string prefix_;
};

constexpr int64_t kMaxDim = int64_t{1} << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr double kHuge = 1e12;

Result<bool> read_switch(Switch value, const Fields& fields, const char* field) {
  if (value == Switch::kByField) return fields.boolean(field, false);
  return value == Switch::kAlways;
}

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

Status read_yarn(const Fields& dict, RopeScaling& scaling) {
  HEARTH_TRY_ASSIGN(scaling.beta_fast, dict.number("beta_fast", 1e-6, kHuge, 32.0));
  HEARTH_TRY_ASSIGN(scaling.beta_slow, dict.number("beta_slow", 1e-6, kHuge, 1.0));
  HEARTH_TRY_ASSIGN(scaling.truncate, dict.boolean("truncate", true));
  HEARTH_TRY_ASSIGN(const double mscale, dict.number("mscale", 0, kHuge, 0.0));
  HEARTH_TRY_ASSIGN(const double mscale_all_dim, dict.number("mscale_all_dim", 0, kHuge, 0.0));
  const double computed = mscale != 0 && mscale_all_dim != 0
                              ? yarn_magnitude(scaling.factor, mscale) / yarn_magnitude(scaling.factor, mscale_all_dim)
                              : yarn_magnitude(scaling.factor, 1);
  HEARTH_TRY_ASSIGN(scaling.attention_factor, dict.number("attention_factor", 1e-6, kHuge, computed));
  return {};
}

// `rope_scaling` of older files and `rope_parameters` of newer ones, the former winning; the base may
// stand inside either or beside them.
Status read_rope(const Fields& fields, ModelConfig& out) {
  const char* name = "rope_scaling";
  const json* dict = fields.get(name);
  if (!dict || (dict->is_object() && dict->empty())) dict = fields.get(name = "rope_parameters");
  static const json kEmpty = json::object();
  if (!dict) dict = &kEmpty;
  if (!dict->is_object())
    return invalid_argument("config.json: '{}' is {}; wanted an object", name, Fields::shown(*dict));
  for (const auto& [key, value] : dict->items())
    if (value.is_object())
      return unsupported("config.json: '{}' has parameters per layer type ({}); hearth supports one set for all layers",
                         name, quote_name(key));

  const Fields scaling_fields(*dict, std::string(name) + ".");
  HEARTH_TRY_ASSIGN(const double outer_theta, fields.number("rope_theta", 1, kHuge, 10000.0));
  HEARTH_TRY_ASSIGN(out.rope_theta, scaling_fields.number("rope_theta", 1, kHuge, outer_theta));
  HEARTH_TRY_ASSIGN(const double partial, scaling_fields.number("partial_rotary_factor", 0, 1, 1.0));
  if (partial != 1)
    return unsupported("config.json: '{}.partial_rotary_factor' is {}; hearth supports 1", name, partial);

  const json* type = scaling_fields.get("rope_type");
  if (!type) type = scaling_fields.get("type");
  const std::string type_name = !type ? "default" : type->is_string() ? type->get<std::string>() : Fields::shown(*type);
  RopeScaling& scaling = out.rope_scaling;
  if (type_name == "default") return {};

  HEARTH_TRY_ASSIGN(const int64_t inner_original,
                    scaling_fields.integer("original_max_position_embeddings", 1, kMaxPositions, out.max_positions));
  HEARTH_TRY_ASSIGN(scaling.original_max_position_embeddings,
                    fields.integer("original_max_position_embeddings", 1, kMaxPositions, inner_original));
  std::optional<double> default_factor;
  if (type_name == "yarn" && dict->contains("factor"))
    default_factor =
        static_cast<double>(out.max_positions) / static_cast<double>(scaling.original_max_position_embeddings);
  if (type_name == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (type_name == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
    HEARTH_TRY_ASSIGN(scaling.low_freq_factor, scaling_fields.number("low_freq_factor", 1e-6, kHuge, std::nullopt));
    HEARTH_TRY_ASSIGN(scaling.high_freq_factor, scaling_fields.number("high_freq_factor", 1e-6, kHuge, std::nullopt));
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      return invalid_argument("config.json: '{}.high_freq_factor' is {}; wanted more than low_freq_factor {}", name,
                              scaling.high_freq_factor, scaling.low_freq_factor);
  } else if (type_name == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
  } else {
    return unsupported("config.json: rope type {} is not supported; hearth supports default, linear, llama3 and yarn",
                       quote_name(type_name));
  }
  HEARTH_TRY_ASSIGN(scaling.factor, scaling_fields.number("factor", 1e-6, kHuge, default_factor));
  if (scaling.type == RopeScaling::Type::kYarn) HEARTH_TRY(read_yarn(scaling_fields, scaling));
  return {};
}

Result<std::vector<bool>> read_layer_types(const json& types, int64_t layers) {
  if (!types.is_array() || static_cast<int64_t>(types.size()) != layers)
    return invalid_argument("config.json: 'layer_types' is {}; wanted a list of {} strings", Fields::shown(types),
                            layers);
  std::vector<bool> sliding;
  for (const json& type : types) {
    if (type != "full_attention" && type != "sliding_attention")
      return unsupported("config.json: 'layer_types' has {}; hearth supports full_attention and sliding_attention",
                         Fields::shown(type));
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

Status read_windows(const Architecture& architecture, const Fields& fields, ModelConfig& out) {
  out.windows.assign(static_cast<size_t>(out.layers), 0);
  std::vector<bool> sliding(static_cast<size_t>(out.layers), false);
  const json* layer_types = fields.get("layer_types");
  if (layer_types) {
    HEARTH_TRY_ASSIGN(sliding, read_layer_types(*layer_types, out.layers));
  }

  if (architecture.window_rule == WindowRule::kNone) {
    if (const json* window = fields.get("sliding_window"))
      return unsupported("config.json: 'sliding_window' is {}, but {} has none", Fields::shown(*window),
                         architecture.class_name);
    if (std::ranges::count(sliding, true) > 0)
      return unsupported("config.json: 'layer_types' has sliding_attention, but {} has no window",
                         architecture.class_name);
    return {};
  }
  HEARTH_TRY_ASSIGN(int64_t window, fields.integer("sliding_window", 1, kMaxPositions,
                                                   fields.is_null("sliding_window") ? 0 : architecture.default_window));
  if (architecture.window_rule == WindowRule::kPerLayer) {
    HEARTH_TRY_ASSIGN(const bool in_use, fields.boolean("use_sliding_window", false));
    if (!in_use) window = 0;
    HEARTH_TRY_ASSIGN(const int64_t first, fields.integer("max_window_layers", 0, kMaxDim, 28));
    if (!layer_types)
      for (int64_t i = first; i < out.layers; ++i) sliding[static_cast<size_t>(i)] = window > 0;
  } else {
    const auto stated = std::ranges::count(sliding, true);
    if (layer_types && stated != (window > 0 ? out.layers : 0))
      return unsupported(
          "config.json: 'layer_types' has {} sliding layers of {} and 'sliding_window' is {}; {} has one window for "
          "all layers or none",
          stated, out.layers, window, architecture.class_name);
    sliding.assign(sliding.size(), window > 0);
  }
  for (size_t i = 0; i < sliding.size(); ++i) {
    if (sliding[i] && window == 0)
      return invalid_argument("config.json: layer {} is sliding_attention, but no window is in use", i);
    if (sliding[i]) out.windows[i] = window;
  }
  return {};
}

Result<std::vector<int32_t>> read_token_ids(const Fields& fields, const char* name, int64_t vocab) {
  std::vector<int32_t> ids;
  const json* value = fields.get(name);
  if (!value) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& id : list) {
    // -1 and ids beyond the vocabulary stand in real files for "none".
    if (!id.is_number_integer())
      return invalid_argument("config.json: '{}' is {}; wanted an id or a list of ids", name, Fields::shown(*value));
    const int64_t token = id.get<int64_t>();
    if (token >= 0 && token < vocab) ids.push_back(static_cast<int32_t>(token));
  }
  return ids;
}

Result<const Architecture*> read_architecture(const json& config) {
  std::string supported;
  for (const Architecture& a : architectures())
    supported += fmt::format("{}{}", supported.empty() ? "" : ", ", a.class_name);
  const auto it = config.find("architectures");
  if (it == config.end() || !it->is_array() || it->empty() || !it->front().is_string())
    return invalid_argument("config.json: 'architectures' is {}; wanted a list that names one of {}",
                            it == config.end() ? "missing" : Fields::shown(*it), supported);
  const std::string name = it->front().get<std::string>();
  const Architecture* architecture = find_architecture(name);
  if (!architecture)
    return unsupported("architecture {} is not supported; hearth supports {}", quote_name(name), supported);
  // Where the two disagree, others follow model_type: another model than the one named here.
  const auto type = config.find("model_type");
  if (type != config.end() && !type->is_null() && *type != architecture->model_type)
    return unsupported("config.json: 'model_type' is {}, but {} is \"{}\"", Fields::shown(*type), name,
                       architecture->model_type);
  return architecture;
}

}  // namespace

Result<ModelConfig> parse_model_config(const json& config) {
  if (!config.is_object()) return invalid_argument("config.json is {}; wanted an object", Fields::shown(config));
  ModelConfig out;
  HEARTH_TRY_ASSIGN(out.architecture, read_architecture(config));
  const Architecture& architecture = *out.architecture;
  const Fields fields(config);
  for (const RefusedField& refused : refused_fields()) {
    const json* value = fields.get(std::string(refused.name).c_str());
    if (value && *value != refused.harmless)
      return unsupported("config.json: '{}' is {}, which changes the result and is not supported", refused.name,
                         Fields::shown(*value));
  }
  for (const char* name : {"hidden_act", "hidden_activation"})
    if (const json* act = fields.get(name); act && *act != "silu" && *act != "swish")
      return unsupported("config.json: '{}' is {}; hearth supports silu", name, Fields::shown(*act));

  HEARTH_TRY_ASSIGN(out.vocab_size, fields.integer("vocab_size", 1, kMaxDim, std::nullopt));
  HEARTH_TRY_ASSIGN(out.hidden_size, fields.integer("hidden_size", 1, kMaxDim, std::nullopt));
  HEARTH_TRY_ASSIGN(out.intermediate_size, fields.integer("intermediate_size", 1, kMaxDim, std::nullopt));
  HEARTH_TRY_ASSIGN(out.layers, fields.integer("num_hidden_layers", 1, 100000, std::nullopt));
  HEARTH_TRY_ASSIGN(out.heads, fields.integer("num_attention_heads", 1, 65536, std::nullopt));
  const int64_t default_kv_heads = architecture.default_kv_heads > 0 && !fields.is_null("num_key_value_heads")
                                       ? architecture.default_kv_heads
                                       : out.heads;
  HEARTH_TRY_ASSIGN(out.kv_heads, fields.integer("num_key_value_heads", 1, 65536, default_kv_heads));
  if (out.heads % out.kv_heads != 0)
    return invalid_argument("config.json: {} attention heads are not a multiple of {} key-value heads", out.heads,
                            out.kv_heads);

  int64_t head_dim =
      architecture.default_head_dim > 0 && !fields.is_null("head_dim") ? architecture.default_head_dim : 0;
  if (head_dim == 0 && !fields.get("head_dim")) {
    if (out.hidden_size % out.heads != 0)
      return invalid_argument(
          "config.json: 'hidden_size' {} is not a multiple of 'num_attention_heads' {}, and 'head_dim' is missing",
          out.hidden_size, out.heads);
    head_dim = out.hidden_size / out.heads;
  }
  HEARTH_TRY_ASSIGN(out.head_dim, fields.integer("head_dim", 1, 65536, head_dim));
  if (out.head_dim % 2 != 0)
    return unsupported("config.json: head dimension {} is odd; rotary embedding needs pairs", out.head_dim);
  HEARTH_TRY_ASSIGN(out.max_positions,
                    fields.integer("max_position_embeddings", 1, kMaxPositions, architecture.default_max_positions));
  HEARTH_TRY_ASSIGN(out.rms_norm_eps, fields.number("rms_norm_eps", 0, 1, 1e-6));
  HEARTH_TRY_ASSIGN(out.tie_word_embeddings, fields.boolean("tie_word_embeddings", false));
  HEARTH_TRY_ASSIGN(out.qkv_bias, read_switch(architecture.qkv_bias, fields, "attention_bias"));
  HEARTH_TRY_ASSIGN(out.o_bias, read_switch(architecture.o_bias, fields, "attention_bias"));
  HEARTH_TRY_ASSIGN(out.mlp_bias, read_switch(architecture.mlp_bias, fields, "mlp_bias"));
  out.qk_norm = architecture.qk_norm;
  HEARTH_TRY(read_rope(fields, out));
  HEARTH_TRY(read_windows(architecture, fields, out));
  HEARTH_TRY_ASSIGN(out.eos_token_ids, read_token_ids(fields, "eos_token_id", out.vocab_size));
  HEARTH_TRY_ASSIGN(const std::vector<int32_t> bos, read_token_ids(fields, "bos_token_id", out.vocab_size));
  if (!bos.empty()) out.bos_token_id = bos.front();
  return out;
}

}  // namespace hearth
