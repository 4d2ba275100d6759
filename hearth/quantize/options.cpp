// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/options.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

constexpr std::array<std::string_view, 5> kFormats = {"fp8", "int4", "fireq", "fireq-c4", "sbvr"};
constexpr std::array<std::string_view, 5> kMethods = {"auto", "rtn", "clip", "gptq", "authors"};
constexpr std::string_view kPlain = "bf16";
constexpr double kTableBits = 0.2;  // SBVR's indices and lines, per weight, where no limit is given

bool is_format(std::string_view name) { return std::ranges::find(kFormats, name) != kFormats.end(); }

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == text.npos) return parts;
    text.remove_prefix(at + 1);
  }
}

bool matches_component(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == pattern.npos) return pattern == name;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  const std::string_view rest = pattern.substr(star + 1);
  for (size_t at = star; at <= name.size(); ++at)
    if (matches_component(rest, name.substr(at))) return true;
  return false;
}

Result<FormatRule> parse_rule(std::string_view text) {
  const size_t at = text.find('=');
  const std::string_view pattern = trim(text.substr(0, at));
  const std::string_view format = at == text.npos ? std::string_view() : trim(text.substr(at + 1));
  if (pattern.empty() || format.empty())
    return invalid_argument("'{}' is no rule; wanted MODULE=FORMAT, lm_head=bf16 say", text);
  if (format != kPlain && !is_format(format))
    return invalid_argument("rule '{}': unknown format '{}'; known: {}", text, format,
                            fmt::join(quantize_format_names(), ", "));
  return FormatRule{std::string(pattern), std::string(format)};
}

WeightFormat weight_format(const QuantizeOptions& options, std::string_view name, DType source) {
  WeightFormat format;
  if (name == "fp8") {
    format.code = WeightCode::kE4m3;
    format.scale_layout = ScaleLayout::kRow;
    format.act = ActFormat::kE4m3PerToken;
    return format;
  }
  if (name == "sbvr") {
    format.code = WeightCode::kBitvectors;
    format.group_k = 128;
    format.bitvectors = static_cast<int>(options.bitvectors);
    format.lines = options.lines;
    format.integer_lines = true;
    format.act = ActFormat::kI8PerGroup;
    return format;
  }
  const bool int4 = name == "int4";
  format.code = int4 ? WeightCode::kU4 : name == "fireq-c4" ? WeightCode::kC4 : WeightCode::kI4SignMagnitude;
  format.scale_layout = options.group_size == 0 ? ScaleLayout::kRow : ScaleLayout::kGroup;
  format.group_k = options.group_size;
  // compressed-tensors' scales have the model's type.
  format.scale_dtype = int4 && source != DType::kF16 ? DType::kBf16 : DType::kF16;
  format.has_zero_point = int4 && options.asymmetric;
  if (!int4) format.act = ActFormat::kE4m3PerToken;
  return format;
}

// Whether any linear could get one of `formats`.
bool may_use(const QuantizeOptions& o, std::initializer_list<std::string_view> formats) {
  const auto wanted = [&](std::string_view name) { return std::ranges::find(formats, name) != formats.end(); };
  return wanted(o.to) || std::ranges::any_of(o.rules, wanted, &FormatRule::format) ||
         (o.to == kAutoFormat && std::ranges::any_of(o.candidates, wanted));
}

// An option that nothing would look at was meant for another command line.
Status check_use(const QuantizeOptions& o) {
  const QuantizeOptions usual;
  const bool groups = o.group_size != usual.group_size;
  if (groups && !may_use(o, {"int4", "fireq", "fireq-c4"}))
    return invalid_argument("--group-size is for int4, fireq and fireq-c4; --to {} has no use for it", o.to);
  if (groups && o.group_size == 0 && may_use(o, {"fireq", "fireq-c4"}))
    return invalid_argument("--group-size channel is for int4; fireq and fireq-c4 have groups of 128, 64 or 32");
  if (o.asymmetric && !may_use(o, {"int4"}))
    return invalid_argument("--asymmetric is for int4; --to {} has no use for it", o.to);
  const bool bitvectors = o.bitvectors != usual.bitvectors || o.lines != usual.lines || o.max_bits;
  if (bitvectors && !may_use(o, {"sbvr"}))
    return invalid_argument("--bitvectors, --lines and --max-bits are for sbvr; --to {} has no use for them", o.to);
  if (o.to != kAutoFormat && (o.bits != usual.bits || o.candidates != usual.candidates))
    return invalid_argument("--bits and --candidates are for --to auto; --to is {}", o.to);
  return {};
}

}  // namespace

std::vector<std::string> quantize_format_names() {
  std::vector<std::string> names(kFormats.begin(), kFormats.end());
  names.emplace_back(kPlain);
  return names;
}

std::string_view encode_method_name(EncodeMethod method) {
  switch (method) {
    case EncodeMethod::kNearest: return "rtn";
    case EncodeMethod::kClip: return "clip";
    case EncodeMethod::kGptq: return "gptq";
    case EncodeMethod::kAuthors: return "authors";
  }
  return "";
}

Result<std::vector<FormatRule>> parse_format_rules(std::string_view text) {
  std::vector<FormatRule> rules;
  for (const std::string_view part : split(text, ',')) {
    if (trim(part).empty()) continue;
    HEARTH_TRY_ASSIGN(FormatRule rule, parse_rule(part));
    rules.push_back(std::move(rule));
  }
  return rules;
}

Result<std::vector<FormatRule>> parse_rule_file(std::string_view text) {
  std::vector<FormatRule> rules;
  int64_t number = 0;
  for (const std::string_view line : split(text, '\n')) {
    ++number;
    const std::string_view part = trim(line.substr(0, line.find('#')));
    if (part.empty()) continue;
    HEARTH_TRY_ASSIGN(FormatRule rule, parse_rule(part).with_context(fmt::format("line {}", number)));
    rules.push_back(std::move(rule));
  }
  return rules;
}

bool matches_module(std::string_view pattern, std::string_view module) {
  const std::vector<std::string_view> wanted = split(pattern, '.'), names = split(module, '.');
  for (size_t first = 0; first + wanted.size() <= names.size(); ++first)
    if (std::equal(wanted.begin(), wanted.end(), names.begin() + static_cast<std::ptrdiff_t>(first), matches_component))
      return true;
  return false;
}

Status check_options(const QuantizeOptions& o) {
  if (!is_format(o.to) && o.to != kPlain && o.to != kAutoFormat)
    return invalid_argument("--to: unknown format '{}'; known: {}, auto", o.to,
                            fmt::join(quantize_format_names(), ", "));
  if (o.to == kAutoFormat && o.bits <= 0)
    return invalid_argument("--to auto needs --bits: the stored bits of a weight that the linears may take");
  if (o.to == kAutoFormat && !o.calibration)
    return invalid_argument("--to auto measures what goes through the model: give --calibration FILE");
  if (o.candidates.empty())
    return invalid_argument("--candidates: no format; known: {}", fmt::join(quantize_format_names(), ", "));
  for (const std::string& name : o.candidates)
    if (!is_format(name) && name != kPlain)
      return invalid_argument("--candidates: unknown format '{}'; known: {}", name,
                              fmt::join(quantize_format_names(), ", "));
  if (o.to == kPlain && !o.kv && o.rules.empty())
    return invalid_argument("--to {} changes nothing without --kv or rules for some modules", kPlain);
  if (std::ranges::find(kMethods, o.method) == kMethods.end())
    return invalid_argument("--method: unknown method '{}'; known: {}", o.method, fmt::join(kMethods, ", "));
  for (const FormatRule& rule : o.rules)
    if (rule.format != kPlain && !is_format(rule.format))
      return invalid_argument("rule {}={}: unknown format; known: {}", rule.pattern, rule.format,
                              fmt::join(quantize_format_names(), ", "));
  if (o.group_size != 0 && o.group_size != 32 && o.group_size != 64 && o.group_size != 128)
    return invalid_argument("--group-size: {}; wanted 128, 64, 32 or channel", o.group_size);
  if (o.method == "authors" && !may_use(o, {"sbvr"}))
    return invalid_argument("--method authors is the encoder of SBVR's authors; --to {} has no use for it", o.to);
  if (o.method == "authors" && (o.bitvectors != 4 || o.lines != 0 || o.max_bits))
    return invalid_argument(
        "--method authors makes 4 bitvectors with as many lines as it finds; leave --bitvectors, "
        "--lines and --max-bits");
  HEARTH_TRY(check_use(o));
  if (o.bitvectors < 2 || o.bitvectors > 4) return invalid_argument("--bitvectors: {}; wanted 4, 3 or 2", o.bitvectors);
  if (o.lines < 0 || o.lines > 4096) return invalid_argument("--lines: {}; wanted 1 to 4096", o.lines);
  if (o.max_bits && *o.max_bits <= static_cast<double>(o.bitvectors))
    return invalid_argument("--max-bits: {}; {} bitvectors alone take more", *o.max_bits, o.bitvectors);
  if (o.kv_scale_per_head && o.kv != KvFormatId::kFp8)
    return invalid_argument("--kv-scales head is for --kv fp8; --kv is {}", o.kv ? kv_format_name(*o.kv) : "auto");
  return {};
}

ModuleRecipe recipe_for(const QuantizeOptions& options, std::string_view module, int64_t n, int64_t k, DType source) {
  ModuleRecipe recipe;
  recipe.format = module == "lm_head" ? std::string(kPlain) : options.to;
  for (const FormatRule& rule : options.rules)
    if (matches_module(rule.pattern, module)) recipe.format = rule.format;
  if (recipe.plain()) return recipe;

  EncodeOptions& encode = recipe.encode;
  encode.format = weight_format(options, recipe.format, source);
  if (recipe.format == "int4" && encode.format.scale_layout == ScaleLayout::kGroup && k % encode.format.group_k != 0) {
    recipe = {.format = std::string(kPlain),
              .encode = {},
              .note = fmt::format("kept in its own type: rows of {} are no multiple of the group of {}", k,
                                  options.group_size)};
    return recipe;
  }
  if (encode.format.group_k > 0 && k % encode.format.group_k != 0)
    recipe.note = fmt::format("the last group of a row has {} columns", k % encode.format.group_k);
  (void)n;
  encode.method = options.method == "rtn"                                  ? EncodeMethod::kNearest
                  : options.method == "clip"                               ? EncodeMethod::kClip
                  : options.method == "gptq"                               ? EncodeMethod::kGptq
                  : options.method == "authors" && recipe.format == "sbvr" ? EncodeMethod::kAuthors
                  : recipe.format == "fp8"                                 ? EncodeMethod::kClip
                                                                           : EncodeMethod::kGptq;
  if (encode.method == EncodeMethod::kAuthors) encode.format.integer_lines = false;
  encode.max_bits = options.max_bits.value_or(static_cast<double>(options.bitvectors) + kTableBits);
  encode.order = options.act_order ? ColumnOrder::kGroups : ColumnOrder::kStored;
  encode.seed = options.seed;
  return recipe;
}

nlohmann::ordered_json options_json(const QuantizeOptions& o) {
  nlohmann::ordered_json json = {
      {"to", o.to},
      {"bits", o.bits},
      {"candidates", o.to == kAutoFormat ? fmt::format("{}", fmt::join(o.candidates, ",")) : ""},
      {"method", o.method},
      {"group_size", o.group_size},
      {"asymmetric", o.asymmetric},
      {"bitvectors", o.bitvectors},
      {"lines", o.lines},
      {"max_bits", o.max_bits ? nlohmann::ordered_json(*o.max_bits) : nullptr},
      {"awq", o.awq ? nlohmann::ordered_json(*o.awq) : nullptr},
      {"act_order", o.act_order},
      {"sequential", o.sequential},
      {"kv", o.kv ? nlohmann::ordered_json(kv_format_name(*o.kv)) : nullptr},
      {"kv_scale_per_head", o.kv_scale_per_head},
      {"rotate_v", o.rotate_v ? nlohmann::ordered_json(*o.rotate_v) : nullptr},
      {"seed", o.seed},
      {"backend", o.ops->backend}};
  std::string rules;
  for (const FormatRule& rule : o.rules) rules += fmt::format("{}={},", rule.pattern, rule.format);
  json["rules"] = rules;
  return json;
}

}  // namespace hearth
