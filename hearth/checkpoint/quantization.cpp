// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/quantization.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// Where the configuration was found, with members in the order of the file: the first rule that matches a module
// counts in GPTQ's "dynamic".
struct FoundConfig {
  nlohmann::ordered_json json;
  std::string place;  // for messages
  std::string_view method_if_absent;
};

Result<nlohmann::ordered_json> read_ordered(const std::filesystem::path& path) {
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(path, kMaxJsonFileBytes));
  std::string_view json = text;
  if (json.starts_with("\xEF\xBB\xBF")) json.remove_prefix(3);
  if (const auto error = json_syntax_error(json)) return corrupt("{}: {}", path.string(), *error);
  auto value = nlohmann::ordered_json::parse(json, nullptr, false);
  if (!value.is_object()) return corrupt("{}: wanted an object", path.string());
  return value;
}

Result<std::optional<FoundConfig>> find_config(const Checkpoint& checkpoint) {
  const auto it = checkpoint.config().find("quantization_config");
  if (it != checkpoint.config().end() && !it->is_null()) {
    // The order of members counts in "dynamic" alone; what is in memory has lost it.
    if (!it->is_object() || !it->contains("dynamic"))
      return std::optional<FoundConfig>(FoundConfig{nlohmann::ordered_json(*it), "quantization_config", ""});
    HEARTH_TRY_ASSIGN(nlohmann::ordered_json config, read_ordered(checkpoint.dir() / "config.json"));
    return std::optional<FoundConfig>(FoundConfig{std::move(config["quantization_config"]), "quantization_config", ""});
  }
  for (const auto& [name, method] : {std::pair{"quantize_config.json", "gptq"}, {"quant_config.json", "awq"}}) {
    auto config = read_ordered(checkpoint.dir() / name);
    if (config) return std::optional<FoundConfig>(FoundConfig{std::move(*config), name, method});
    if (config.error().code != ErrorCode::kNotFound) return std::move(config).error();
  }
  return std::optional<FoundConfig>();
}

Result<FormPointer> parse_form(const FoundConfig& found) {
  HEARTH_TRY_ASSIGN(const ConfigObject config, ConfigObject::make(found.json, found.place));
  HEARTH_TRY_ASSIGN(const std::string alias, config.string("method", std::string(found.method_if_absent)));
  HEARTH_TRY_ASSIGN(const std::string method, config.string("quant_method", alias));
  if (method == "awq") return parse_awq(config);
  if (method == "gptq") return parse_gptq(config);
  if (method == "compressed-tensors") return parse_compressed_tensors(config);
  if (method == "fp8") return parse_fp8(config);
  if (method == "hearth") return parse_hearth(config);
  if (method.empty()) return corrupt("{} has no 'quant_method'", found.place);
  return unsupported("{}: quant_method {}; wanted awq, gptq, compressed-tensors, fp8 or hearth", found.place,
                     quote_name(method));
}

// Far above any model, and no product of two overflows.
constexpr int64_t kMaxDimension = int64_t{1} << 30;

Status check_dimensions(std::string_view module, int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > kMaxDimension || k > kMaxDimension)
    return invalid_argument("{}: a linear of {} x {}; wanted 1 to {} each", module, n, k, kMaxDimension);
  return {};
}

Result<std::optional<WeightFormat>> validated(Result<std::optional<WeightFormat>> found, std::string_view module,
                                              int64_t n, int64_t k) {
  HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> format, std::move(found).with_context(module));
  if (format) {
    HEARTH_TRY(format->validate(n, k).with_context(module));
  }
  return format;
}

}  // namespace

struct Quantization::State {
  FormPointer form;  // null: nothing is quantized
};

Quantization::Quantization(std::unique_ptr<const State> state) : state_(std::move(state)) {}
Quantization::~Quantization() = default;
Quantization::Quantization(Quantization&&) noexcept = default;
Quantization& Quantization::operator=(Quantization&&) noexcept = default;

Result<Quantization> Quantization::parse(const Checkpoint& checkpoint) {
  auto state = std::make_unique<State>();
  HEARTH_TRY_ASSIGN(const std::optional<FoundConfig> found, find_config(checkpoint));
  if (found) {
    HEARTH_TRY_ASSIGN(state->form, parse_form(*found).with_context(checkpoint.dir().string()));
  }
  return Quantization(std::move(state));
}

Result<Quantization> Quantization::parse_file(const std::filesystem::path& config) {
  auto state = std::make_unique<State>();
  HEARTH_TRY_ASSIGN(nlohmann::ordered_json json, read_ordered(config));
  if (const auto it = json.find("quantization_config"); it != json.end() && !it->is_null()) {
    const FoundConfig found{std::move(*it), "quantization_config", ""};
    HEARTH_TRY_ASSIGN(state->form, parse_form(found).with_context(config.string()));
  }
  return Quantization(std::move(state));
}

std::string_view Quantization::method() const { return state_->form ? state_->form->method() : std::string_view(); }

std::optional<KvFormatId> Quantization::kv_format() const {
  return state_->form ? state_->form->kv_format() : std::nullopt;
}

Result<std::optional<WeightFormat>> Quantization::format(const Checkpoint& checkpoint, std::string_view module,
                                                         int64_t n, int64_t k) const {
  if (!state_->form) return std::optional<WeightFormat>();
  HEARTH_TRY(check_dimensions(module, n, k));
  return validated(state_->form->format(checkpoint, module, n, k), module, n, k);
}

Result<std::optional<WeightFormat>> Quantization::described_format(std::string_view module, int64_t n,
                                                                   int64_t k) const {
  if (!state_->form) return std::optional<WeightFormat>();
  HEARTH_TRY(check_dimensions(module, n, k));
  return validated(state_->form->described(module, n, k), module, n, k);
}

std::optional<TensorEntry> Quantization::canonical_codes(const Checkpoint& checkpoint, std::string_view module,
                                                         int64_t n, int64_t k) const {
  const TensorEntry* const found = state_->form->canonical_codes(checkpoint, module, k);
  if (found == nullptr) return std::nullopt;
  TensorEntry codes = *found;
  if (codes.dtype != DType::kE4m3) codes.dtype = DType::kU8;
  codes.shape = {n, codes.size_bytes / n};
  return codes;
}

Result<QuantizedMatrix> Quantization::read(const Checkpoint& checkpoint, std::string_view module, int64_t n, int64_t k,
                                           bool with_codes) const {
  HEARTH_TRY_ASSIGN(const std::optional<WeightFormat> found, format(checkpoint, module, n, k));
  HEARTH_CHECK(found.has_value(), "{} is not quantized", module);
  QuantizedMatrix matrix{.format = *found, .n = n, .k = k};
  HEARTH_TRY(state_->form->read(checkpoint, module, with_codes, matrix).with_context(module));
  if (Status status = matrix.validate(with_codes); !status) return corrupt("{}: {}", module, status.error().message);
  return matrix;
}

std::vector<std::string> Quantization::tensors(const Checkpoint& checkpoint, std::string_view module) const {
  return state_->form ? state_->form->tensors(checkpoint, module) : std::vector<std::string>();
}

}  // namespace hearth
