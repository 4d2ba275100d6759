// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/quantize_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/json.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

constexpr const char* kFile = "quantize_report.jsonl";

Result<QuantizedModule> parse_module(std::string_view text) {
  HEARTH_TRY_ASSIGN(const nlohmann::json line, parse_json(text));
  QuantizedModule module;
  for (const auto& [name, field] : {std::pair{"module", &QuantizedModule::module},
                                    {"format", &QuantizedModule::format},
                                    {"method", &QuantizedModule::method}}) {
    if (!line.is_object() || !line.contains(name) || !line[name].is_string())
      return corrupt("no string '{}'; wanted module, format and method", name);
    module.*field = line[name].get<std::string>();
  }
  for (const auto& [name, field] : {std::pair{"bits_per_weight", &QuantizedModule::bits_per_weight},
                                    {"rel_error", &QuantizedModule::rel_error},
                                    {"proxy", &QuantizedModule::proxy}}) {
    if (line.contains(name) && line[name].is_number()) module.*field = line[name].get<double>();
  }
  return module;
}

std::string joined(const std::vector<QuantizedModule>& modules, std::string QuantizedModule::*field) {
  std::vector<std::string> found;
  for (const QuantizedModule& module : modules)
    if (module.rel_error && std::find(found.begin(), found.end(), module.*field) == found.end())
      found.push_back(module.*field);
  return fmt::format("{}", fmt::join(found, " + "));
}

std::string number(const std::optional<double>& value) { return value ? fmt::format("{:.3e}", *value) : "-"; }

std::optional<double> mean(const std::vector<QuantizedModule>& modules, std::optional<double> QuantizedModule::*field) {
  double sum = 0;
  int64_t count = 0;
  for (const QuantizedModule& module : modules)
    if (const auto& value = module.*field) sum += *value, ++count;
  return count > 0 ? std::optional(sum / static_cast<double>(count)) : std::nullopt;
}

}  // namespace

Result<std::vector<QuantizedModule>> read_quantize_report(const std::filesystem::path& dir) {
  std::vector<QuantizedModule> modules;
  std::error_code code;
  if (!std::filesystem::exists(dir / kFile, code)) return modules;
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(dir / kFile));
  std::string_view rest = text;
  for (int64_t line = 1; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    auto module = parse_module(rest.substr(0, end));
    if (!module)
      return std::move(module).error().with_context(fmt::format("{}, line {}", (dir / kFile).string(), line));
    modules.push_back(std::move(module).value());
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return modules;
}

std::string formats_of(const std::vector<QuantizedModule>& modules) {
  return joined(modules, &QuantizedModule::format);
}

std::string methods_of(const std::vector<QuantizedModule>& modules) {
  return joined(modules, &QuantizedModule::method);
}

std::string quantize_report_text(const std::vector<QuantizedModule>& modules) {
  std::string text =
      fmt::format("\n{:<36} {:<10} {:<10} {:>10} {:>10}\n", "error of", "format", "method", "weights", "output");
  for (const QuantizedModule& m : modules)
    text += fmt::format("{:<36} {:<10} {:<10} {:>10} {:>10}\n", m.module, m.format, m.method, number(m.rel_error),
                        number(m.proxy));
  return text + fmt::format("{:<58} {:>10} {:>10}\n", "mean of the quantized",
                            number(mean(modules, &QuantizedModule::rel_error)),
                            number(mean(modules, &QuantizedModule::proxy)));
}

nlohmann::json quantize_report_json(const std::vector<QuantizedModule>& modules) {
  nlohmann::json list = nlohmann::json::array();
  const auto value = [](const std::optional<double>& v) { return v ? nlohmann::json(*v) : nlohmann::json(); };
  for (const QuantizedModule& m : modules)
    list.push_back({{"module", m.module},
                    {"format", m.format},
                    {"method", m.method},
                    {"bits_per_weight", value(m.bits_per_weight)},
                    {"rel_error", value(m.rel_error)},
                    {"proxy", value(m.proxy)}});
  return list;
}

}  // namespace hearth
