// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/mixed_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

// The highest percentile that was asked for, or the median.
double tail(const LoadSummary& s, const char* metric) {
  const MetricSummary& m = s.metric(metric);
  return m.percentiles.empty() ? m.median : m.percentiles.back();
}

std::string compare_line(const std::string& name, size_t width, const LoadSummary& s) {
  const std::string attained = s.slo.answers > 0 ? fmt::format("{:.2f}", 100 * s.attainment()) : "-";
  return fmt::format("{:<{}}{:>9}{:>9}{:>8}{:>10}{:>10.0f}{:>10.0f}{:>9.1f}{:>9.1f}{:>11.1f}\n", name, width, s.planned,
                     s.done, s.failed, attained, s.metric("ttft").median, tail(s, "ttft"), s.metric("tpot").median,
                     tail(s, "tpot"), s.arrivals_tokens_per_s.value_or(s.output_tokens_per_s));
}

}  // namespace

MixedReport summarize_models(const LoadResult& result, std::span<const std::string> names,
                             const std::vector<double>& percentiles, const Goals& goals, const SummaryScope& scope) {
  MixedReport report{.names = {names.begin(), names.end()}, .models = {}, .all = {}};
  for (size_t m = 0; m < names.size(); ++m) {
    SummaryScope one = scope;
    one.model = static_cast<int64_t>(m);
    report.models.push_back(summarize(result, percentiles, goals, one));
  }
  report.all = summarize(result, percentiles, goals, scope);
  return report;
}

std::string mixed_table(const MixedReport& report, const std::vector<std::string>& shown) {
  std::string out;
  size_t width = std::string_view("all models").size();
  for (size_t m = 0; m < report.names.size(); ++m) {
    width = std::max(width, report.names[m].size());
    out += fmt::format("== {}\n{}\n", report.names[m], report_table(report.models[m], shown));
  }
  out += fmt::format("== all models\n{}\n", report_table(report.all, shown));
  const auto& percentiles = report.all.percentiles;
  const std::string tail_name = percentiles.empty() ? "p50" : fmt::format("p{:g}", percentiles.back());
  out += fmt::format("{:<{}}{:>9}{:>9}{:>8}{:>10}{:>10}{:>10}{:>9}{:>9}{:>11}\n", "", width, "requests", "done",
                     "failed", "kept %", "TTFT ms", tail_name, "TPOT ms", tail_name, "tokens/s");
  for (size_t m = 0; m < report.names.size(); ++m) out += compare_line(report.names[m], width, report.models[m]);
  return out + compare_line("all models", width, report.all);
}

nlohmann::json mixed_json(const MixedReport& report) {
  nlohmann::json json = report_json(report.all);
  nlohmann::json& models = json["models"] = nlohmann::json::object();
  for (size_t m = 0; m < report.names.size(); ++m) models[report.names[m]] = report_json(report.models[m]);
  return json;
}

}  // namespace hearth
