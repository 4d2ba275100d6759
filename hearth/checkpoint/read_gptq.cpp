// SPDX-License-Identifier: Apache-2.0
// GPTQ, checkpoint formats "gptq" (v1) and "gptq_v2" (docs/formats/foreign-quantized.md): codes transposed, eight
// columns of the input in a word; v1 stores zero points less one. What a module's tensors are says whether it is
// quantized, g_idx says whether its columns were reordered.
#include "hearth/base/log.h"
#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quantized_form.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

// What a module's codes are, before and after a "dynamic" rule.
struct GptqSettings {
  int64_t bits = 4;
  int64_t group = 128;  // 0: a whole row
  bool sym = true;
};

struct DynamicRule {
  NamePattern pattern;
  bool exclude = false;
  GptqSettings settings;
};

Result<GptqSettings> parse_settings(const ConfigObject& config, const GptqSettings& absent) {
  GptqSettings settings;
  HEARTH_TRY_ASSIGN(settings.bits, config.integer("bits", absent.bits));
  HEARTH_TRY_ASSIGN(const int64_t group_size, config.integer("group_size", absent.group == 0 ? -1 : absent.group));
  HEARTH_TRY_ASSIGN(settings.group, checked_group(group_size).with_context(config.path()));
  HEARTH_TRY_ASSIGN(settings.sym, config.boolean("sym", absent.sym));
  return settings;
}

// Asymmetric zero points of v1 that cannot be told: a writer that subtracts per element and joins the words without
// masking fills all nibbles above a zero point of 0.
int64_t count_suspect_words(std::span<const uint32_t> words) {
  return std::ranges::count_if(words, [](uint32_t word) { return word >= 0xFF000000; });
}

class GptqForm final : public QuantizedForm {
 public:
  GptqForm(GptqSettings settings, bool v2, std::vector<DynamicRule> rules)
      : settings_(settings), v2_(v2), rules_(std::move(rules)) {}

  std::string_view method() const override { return "gptq"; }

  Result<std::optional<WeightFormat>> described(std::string_view module, int64_t n, int64_t k) const override {
    const DynamicRule* const rule = rule_of(module);
    if ((rule != nullptr && rule->exclude) || module == "lm_head") return std::optional<WeightFormat>();
    HEARTH_TRY(check_supported(settings_of(module), n, k));
    return std::optional(stored_as(settings_of(module), DType::kF16));
  }

  Result<std::optional<WeightFormat>> format(const Checkpoint& checkpoint, std::string_view module, int64_t n,
                                             int64_t k) const override {
    const ModuleTensors tensors(checkpoint, module);
    const DynamicRule* const rule = rule_of(module);
    const bool excluded = rule != nullptr && rule->exclude;
    if (!tensors.has("qweight") && (excluded || tensors.has("weight") || module == "lm_head"))
      return std::optional<WeightFormat>();
    if (excluded) return corrupt("has {}, and a dynamic rule excludes it", quote_name(tensors.name("qweight")));
    const GptqSettings& settings = settings_of(module);
    HEARTH_TRY(check_supported(settings, n, k));
    const int64_t groups = settings.group == 0 ? 1 : ceil_div(k, settings.group);
    HEARTH_TRY(tensors.want("qweight", {DType::kI32}, {{k / 8, n}}));
    HEARTH_TRY(tensors.want("qzeros", {DType::kI32}, {{groups, n / 8}}));
    HEARTH_TRY_ASSIGN(const TensorEntry* scales,
                      tensors.want("scales", {DType::kF16, DType::kBf16, DType::kF32}, {{groups, n}}));
    if (tensors.has("g_idx")) {
      HEARTH_TRY(tensors.want("g_idx", {DType::kI32}, {{k}}));
    }
    return std::optional(stored_as(settings, scales->dtype));
  }

  Status read(const Checkpoint& checkpoint, std::string_view module, bool, QuantizedMatrix& matrix) const override {
    const ModuleTensors tensors(checkpoint, module);
    const int64_t n = matrix.n, k = matrix.k;
    const int64_t group = matrix.format.group_k, groups = group == 0 ? 1 : ceil_div(k, group);
    {
      // A word's bytes are four bytes of a row in our order.
      HEARTH_TRY_ASSIGN(const std::vector<uint32_t> packed, tensors.read<uint32_t>(*tensors.find("qweight")));
      const std::vector<uint32_t> rows = transposed<uint32_t>(packed, k / 8, n);
      const auto bytes = std::as_bytes(std::span(rows));
      matrix.codes.resize(bytes.size());
      std::ranges::transform(bytes, matrix.codes.begin(), [](std::byte byte) { return static_cast<uint8_t>(byte); });
    }
    HEARTH_TRY_ASSIGN(const std::vector<float> scales, tensors.read_floats(*tensors.find("scales")));
    matrix.scales = transposed<float>(scales, groups, n);
    HEARTH_TRY(read_zeros(tensors, module, groups, matrix));
    const TensorEntry* const g_idx = tensors.find("g_idx");
    if (g_idx == nullptr) return {};
    HEARTH_TRY_ASSIGN(const std::vector<int32_t> order, tensors.read<int32_t>(*g_idx));
    return order_columns(order, group == 0 ? k : group, matrix).with_context(quote_name(g_idx->name));
  }

  std::vector<std::string> tensors(const Checkpoint& checkpoint, std::string_view module) const override {
    return ModuleTensors(checkpoint, module).present({"qweight", "qzeros", "scales", "g_idx"});
  }

 private:
  static Status check_supported(const GptqSettings& settings, int64_t n, int64_t k) {
    if (settings.bits != 4) return unsupported("GPTQ with {} bits; wanted 4", settings.bits);
    if (n % 8 != 0 || k % 8 != 0) return unsupported("GPTQ of {} x {}; wanted multiples of 8", n, k);
    return {};
  }
  static WeightFormat stored_as(const GptqSettings& settings, DType scale_dtype) {
    WeightFormat format;
    format.code = WeightCode::kU4;
    format.scale_dtype = scale_dtype;
    set_grouping(settings.group, format);
    format.has_zero_point = !settings.sym;
    return format;
  }

  const DynamicRule* rule_of(std::string_view module) const {
    const auto it = std::ranges::find_if(rules_, [&](const DynamicRule& rule) { return rule.pattern.matches(module); });
    return it == rules_.end() ? nullptr : &*it;
  }
  const GptqSettings& settings_of(std::string_view module) const {
    const DynamicRule* const rule = rule_of(module);
    return rule == nullptr ? settings_ : rule->settings;
  }

  Status read_zeros(const ModuleTensors& tensors, std::string_view module, int64_t groups,
                    QuantizedMatrix& matrix) const {
    const TensorEntry& entry = *tensors.find("qzeros");
    HEARTH_TRY_ASSIGN(std::vector<uint32_t> words, tensors.read<uint32_t>(entry));
    if (!v2_) {
      if (const int64_t suspect = matrix.format.has_zero_point ? count_suspect_words(words) : 0; suspect > 0) {
        spdlog::warn(
            "{}: {} words of qzeros may have lost zero points of 0 when they were written; the module may be "
            "damaged",
            module, suspect);
      }
      // Whole words: a writer that subtracts from whole words borrows from the next nibble.
      for (uint32_t& word : words) word += 0x11111111;
    }
    if (!matrix.format.has_zero_point) {
      const auto odd = std::ranges::find_if(words, [](uint32_t word) { return word != 0x88888888; });
      if (odd == words.end()) return {};
      return corrupt("sym is true, and {} holds a zero point other than 8", quote_name(entry.name));
    }
    const int64_t columns = matrix.n / 8;
    matrix.zeros.resize(static_cast<size_t>(matrix.n * groups));
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t row = 0; row < matrix.n; ++row) {
        const uint32_t word = words[static_cast<size_t>(g * columns + row / 8)];
        matrix.zeros[static_cast<size_t>(row * groups + g)] = static_cast<uint8_t>(word >> (row % 8 * 4) & 15);
      }
    }
    return {};
  }

  const GptqSettings settings_;
  const bool v2_;
  const std::vector<DynamicRule> rules_;  // the first that matches counts
};

Result<std::vector<DynamicRule>> parse_rules(const ConfigObject& config, const GptqSettings& settings) {
  std::vector<DynamicRule> rules;
  const auto* const value = config.find("dynamic");
  if (value == nullptr || *value == false) return rules;
  HEARTH_TRY_ASSIGN(const ConfigObject dynamic, config.object("dynamic"));
  for (const auto& [key, overrides] : dynamic.json().items()) {
    const bool exclude = key.starts_with("-:");
    const std::string_view text = exclude || key.starts_with("+:") ? std::string_view(key).substr(2) : key;
    HEARTH_TRY_ASSIGN(NamePattern pattern, NamePattern::make(text).with_context(dynamic.path()));
    DynamicRule rule{std::move(pattern), exclude, settings};
    if (!exclude) {
      HEARTH_TRY_ASSIGN(const ConfigObject object,
                        ConfigObject::make(overrides, fmt::format("{}.{}", dynamic.path(), quote_name(key))));
      HEARTH_TRY_ASSIGN(rule.settings, parse_settings(object, settings));
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

}  // namespace

Result<FormPointer> parse_gptq(const ConfigObject& config) {
  HEARTH_TRY_ASSIGN(const std::string alias, config.string("format", "gptq"));
  HEARTH_TRY_ASSIGN(const std::string format, config.string("checkpoint_format", alias));
  HEARTH_TRY_ASSIGN(const bool marlin, config.boolean("is_marlin_format", false));
  if (marlin || (format != "gptq" && format != "gptq_v2"))
    return unsupported("{}: GPTQ checkpoint_format {}; wanted gptq or gptq_v2", config.path(),
                       quote_name(marlin ? "marlin" : format));
  HEARTH_TRY_ASSIGN(const std::string pack_dtype, config.string("pack_dtype", "int32"));
  if (pack_dtype != "int32")
    return unsupported("{}: GPTQ pack_dtype {}; wanted int32", config.path(), quote_name(pack_dtype));
  // Without rules that say otherwise, all modules have these bits: no need to wait for the first.
  HEARTH_TRY_ASSIGN(const GptqSettings settings, parse_settings(config, {}));
  HEARTH_TRY_ASSIGN(std::vector<DynamicRule> rules, parse_rules(config, settings));
  if (rules.empty() && settings.bits != 4)
    return unsupported("{}: GPTQ with {} bits; wanted 4", config.path(), settings.bits);
  return FormPointer(std::make_unique<GptqForm>(settings, format == "gptq_v2", std::move(rules)));
}

}  // namespace hearth
