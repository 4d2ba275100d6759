// SPDX-License-Identifier: Apache-2.0
// Pure functions.
#include "hearth/client/load_report.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hearth/client/judge.h"

namespace hearth {
namespace {

using Outcome = RequestRecord::Outcome;

struct MetricName {
  const char* name;
  const char* title;
};
constexpr std::array<MetricName, 7> kMetrics = {{{"ttft", "Time to first token, from when due"},
                                                 {"tpot", "Time per output token, the first excluded"},
                                                 {"itl", "Time between tokens"},
                                                 {"e2el", "Time to the whole answer, from when due"},
                                                 {"ttft_sent", "Time to first token, from when sent"},
                                                 {"e2el_sent", "Time to the whole answer, from when sent"},
                                                 {"delay", "Sent later than due"}}};

std::optional<double> parse_double(std::string_view text) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    words.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return words;
}

double tpot_ms(const RequestRecord& r) {
  return (r.last_s - r.first_s) / static_cast<double>(r.output_tokens - 1) * 1e3;
}
bool has_tpot(const RequestRecord& r) { return r.events > 0 && r.output_tokens > 1; }

MetricSummary summarize_metric(const MetricName& name, std::vector<double> values,
                               const std::vector<double>& percentiles) {
  std::sort(values.begin(), values.end());
  MetricSummary summary{.name = name.name, .title = name.title, .count = std::ssize(values)};
  const double count = std::max<double>(1, static_cast<double>(values.size()));
  for (const double value : values) summary.mean += value / count;
  double squares = 0;
  for (const double value : values) squares += (value - summary.mean) * (value - summary.mean);
  summary.std = std::sqrt(squares / count);
  summary.median = percentile(values, 50);
  summary.max = values.empty() ? 0 : values.back();
  for (const double p : percentiles) summary.percentiles.push_back(percentile(values, p));
  return summary;
}

bool is_good(const RequestRecord& r, const Goals& goals) {
  if (r.events == 0) return false;
  if (goals.ttft_ms && (r.first_s - r.due_s) * 1e3 > *goals.ttft_ms) return false;
  if (goals.tpot_ms && has_tpot(r) && tpot_ms(r) > *goals.tpot_ms) return false;
  return !goals.e2el_ms || (r.end_s - r.due_s) * 1e3 <= *goals.e2el_ms;
}

void count_outcome(const RequestRecord& r, LoadSummary& s) {
  s.not_sent += r.outcome == Outcome::kNotSent;
  s.cancelled += r.outcome == Outcome::kCancelled;
  if (r.outcome == Outcome::kFailed) {
    ++s.failed;
    LoadSummary::Errors& errors = s.errors[r.error_kind];
    if (errors.count++ == 0) errors.example = r.error;
  }
  if (r.outcome == Outcome::kDone || r.outcome == Outcome::kCancelled) s.output_tokens += r.output_tokens;
  if (r.outcome != Outcome::kDone) return;
  ++s.done;
  s.prompt_tokens += r.prompt_tokens;
  s.uncounted += !r.server_counted;
}

void add(SloCounts& sum, const SloCounts& more) {
  sum.answers += more.answers;
  sum.attained += more.attained;
  sum.first_late += more.first_late;
  sum.pace_missed += more.pace_missed;
}

int64_t peak_in_flight(const std::vector<RequestRecord>& records, int64_t model) {
  std::vector<std::pair<double, int64_t>> changes;  // an end before a beginning at the same time
  for (const RequestRecord& r : records) {
    if (r.model != model || r.outcome == Outcome::kNotSent) continue;
    changes.emplace_back(r.sent_s, 1);
    changes.emplace_back(r.end_s, -1);
  }
  std::sort(changes.begin(), changes.end());
  int64_t now = 0, peak = 0;
  for (const auto& [at_s, change] : changes) peak = std::max(peak, now += change);
  return peak;
}

std::string metric_names() {
  std::vector<std::string_view> names;
  for (const MetricName& metric : kMetrics) names.emplace_back(metric.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Microseconds are what the clock is good for; more digits would only make lines long.
double rounded(double value) { return std::round(value * 1e3) / 1e3; }

std::string percentile_name(double p) { return fmt::format("p{:g}", p); }

}  // namespace

double percentile(std::span<const double> sorted, double p) {
  if (sorted.empty()) return 0;
  const double rank = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = std::min(static_cast<size_t>(rank), sorted.size() - 1);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (rank - static_cast<double>(below));
}

Result<Goals> parse_goals(const std::vector<std::string>& words) {
  Goals goals;
  for (const std::string& word : words) {
    const size_t colon = word.find(':');
    const std::string name = word.substr(0, colon);
    const auto limit = colon == std::string::npos ? std::nullopt : parse_double(word.substr(colon + 1));
    std::optional<double>* const field = name == "ttft"   ? &goals.ttft_ms
                                         : name == "tpot" ? &goals.tpot_ms
                                         : name == "e2el" ? &goals.e2el_ms
                                                          : nullptr;
    if (field == nullptr || !limit || *limit <= 0)
      return invalid_argument("'{}' is no goal; wanted ttft:MS, tpot:MS or e2el:MS", word);
    *field = limit;
  }
  return goals;
}

Result<std::vector<double>> parse_percentiles(std::string_view text) {
  std::vector<double> percentiles;
  for (const std::string_view word : split(text)) {
    const auto value = parse_double(word);
    if (!value || *value <= 0 || *value >= 100)
      return invalid_argument("'{}' is no percentile; wanted numbers between 0 and 100, such as 50,90,99", word);
    percentiles.push_back(*value);
  }
  std::sort(percentiles.begin(), percentiles.end());
  return percentiles;
}

Result<std::vector<std::string>> parse_metrics(std::string_view text) {
  std::vector<std::string> names;
  for (const std::string_view word : split(text)) {
    const bool known =
        std::any_of(kMetrics.begin(), kMetrics.end(), [&](const MetricName& m) { return word == m.name; });
    if (!known) return invalid_argument("'{}' is no metric; wanted some of {}", word, metric_names());
    names.emplace_back(word);
  }
  return names;
}

double LoadSummary::attainment() const {
  return slo.answers == 0 ? 1 : static_cast<double>(slo.attained) / static_cast<double>(slo.answers);
}

const MetricSummary& LoadSummary::metric(std::string_view name) const {
  const auto found = std::find_if(metrics.begin(), metrics.end(), [&](const auto& m) { return m.name == name; });
  HEARTH_CHECK(found != metrics.end(), "no metric {}", name);
  return *found;
}

LoadSummary summarize(const LoadResult& result, std::vector<double> percentiles, const Goals& goals,
                      const SummaryScope& scope) {
  LoadSummary s;
  s.seconds = result.seconds;
  s.interrupted = result.interrupted;
  if (!scope.model) {
    s.peak_in_flight = result.peak_in_flight;
    s.connections = result.connections;
  } else {
    s.peak_in_flight = peak_in_flight(result.records, *scope.model);
  }
  std::map<std::string_view, std::vector<double>> values;
  double arrivals_tokens = 0;
  for (const RequestRecord& r : result.records) {
    if (scope.model && r.model != *scope.model) continue;
    const bool measured = r.due_s >= scope.from_s;
    ++s.planned;
    s.warmup += !measured;
    count_outcome(r, s);
    if (scope.arrivals_s)
      for_each_event(r, [&](double at_s, double tokens) { arrivals_tokens += at_s < *scope.arrivals_s ? tokens : 0; });
    if (!measured || r.outcome == Outcome::kNotSent) continue;
    if (!scope.slos.empty()) add(s.slo, judge(r, scope.slos[static_cast<size_t>(r.model)]));
    values["delay"].push_back((r.sent_s - r.due_s) * 1e3);
    if (r.outcome == Outcome::kFailed) continue;
    if (r.events > 0) {
      values["ttft"].push_back((r.first_s - r.due_s) * 1e3);
      values["ttft_sent"].push_back((r.first_s - r.sent_s) * 1e3);
      for (const float gap : r.gaps_s) values["itl"].push_back(static_cast<double>(gap) * 1e3);
      if (has_tpot(r)) values["tpot"].push_back(tpot_ms(r));
    }
    if (r.outcome != Outcome::kDone) continue;
    if (is_good(r, goals)) ++s.good;
    values["e2el"].push_back((r.end_s - r.due_s) * 1e3);
    values["e2el_sent"].push_back((r.end_s - r.sent_s) * 1e3);
  }
  for (const MetricName& metric : kMetrics)
    s.metrics.push_back(summarize_metric(metric, std::move(values[metric.name]), percentiles));
  s.percentiles = std::move(percentiles);
  if (s.seconds > 0) {
    s.requests_per_s = static_cast<double>(s.done) / s.seconds;
    s.output_tokens_per_s = static_cast<double>(s.output_tokens) / s.seconds;
    s.total_tokens_per_s = static_cast<double>(s.prompt_tokens + s.output_tokens) / s.seconds;
  }
  if (scope.arrivals_s) s.arrivals_tokens_per_s = arrivals_tokens / *scope.arrivals_s;
  if (goals.any()) s.goodput_per_s = s.seconds > 0 ? static_cast<double>(s.good) / s.seconds : 0;
  return s;
}

std::string report_table(const LoadSummary& s, const std::vector<std::string>& shown) {
  std::string out;
  const auto line = [&](std::string_view name, const std::string& value) {
    out += fmt::format("{:<44}{:>12}\n", name, value);
  };
  line("Requests done", fmt::format("{} of {}", s.done, s.planned));
  if (s.failed > 0) line("Requests failed", fmt::format("{}", s.failed));
  if (s.cancelled + s.not_sent > 0) line("Cancelled / not sent", fmt::format("{} / {}", s.cancelled, s.not_sent));
  if (s.warmup > 0) line("Requests of the warm-up, not judged", fmt::format("{}", s.warmup));
  if (s.slo.answers > 0) {
    line("Kept their targets (%)", fmt::format("{:.2f}", 100 * s.attainment()));
    line("First token late / tokens too slow", fmt::format("{} / {}", s.slo.first_late, s.slo.pace_missed));
  }
  line("Duration (s)", fmt::format("{:.2f}", s.seconds));
  line("Prompt tokens", fmt::format("{}", s.prompt_tokens));
  line("Output tokens", fmt::format("{}", s.output_tokens));
  line("Requests/s", fmt::format("{:.2f}", s.requests_per_s));
  if (s.goodput_per_s) line("Goodput (requests/s within the goals)", fmt::format("{:.2f}", *s.goodput_per_s));
  line("Output tokens/s", fmt::format("{:.1f}", s.output_tokens_per_s));
  if (s.arrivals_tokens_per_s)
    line("Output tokens/s while requests came", fmt::format("{:.1f}", *s.arrivals_tokens_per_s));
  line("Tokens/s, prompts included", fmt::format("{:.1f}", s.total_tokens_per_s));
  line("Most requests in flight", fmt::format("{}", s.peak_in_flight));
  if (s.connections > 0) line("Connections opened", fmt::format("{}", s.connections));

  out += fmt::format("\n{:<44}{:>10}{:>10}", "Milliseconds", "mean", "median");
  for (const double p : s.percentiles)
    if (p != 50) out += fmt::format("{:>10}", percentile_name(p));
  out += fmt::format("{:>10}\n", "max");
  for (const std::string& name : shown) {
    const MetricSummary& m = s.metric(name);
    const auto cell = [&](double value) {
      out += m.count > 0 ? fmt::format("{:>10.2f}", value) : fmt::format("{:>10}", "-");
    };
    out += fmt::format("{:<44}", m.title);
    cell(m.mean);
    cell(m.median);
    for (size_t i = 0; i < s.percentiles.size(); ++i)
      if (s.percentiles[i] != 50) cell(m.percentiles[i]);
    cell(m.max);
    out += '\n';
  }
  if (!s.errors.empty()) out += "\nFailures\n";
  for (const auto& [kind, errors] : s.errors) out += fmt::format("{:>6} x {}\n", errors.count, errors.example);
  if (s.uncounted > 0)
    out += fmt::format("\n{} answers had no usage event: their output tokens are their events\n", s.uncounted);
  return out;
}

nlohmann::json report_json(const LoadSummary& s) {
  nlohmann::json json = {{"planned", s.planned},
                         {"completed", s.done},
                         {"failed", s.failed},
                         {"cancelled", s.cancelled},
                         {"not_sent", s.not_sent},
                         {"duration_s", rounded(s.seconds)},
                         {"total_input_tokens", s.prompt_tokens},
                         {"total_output_tokens", s.output_tokens},
                         {"request_throughput", rounded(s.requests_per_s)},
                         {"output_throughput", rounded(s.output_tokens_per_s)},
                         {"total_token_throughput", rounded(s.total_tokens_per_s)},
                         {"max_concurrent_requests", s.peak_in_flight},
                         {"interrupted", s.interrupted}};
  if (s.goodput_per_s) json["request_goodput"] = rounded(*s.goodput_per_s);
  if (s.connections > 0) json["connections"] = s.connections;
  if (s.warmup > 0) json["warmup_requests"] = s.warmup;
  if (s.arrivals_tokens_per_s) json["arrivals_output_throughput"] = rounded(*s.arrivals_tokens_per_s);
  if (s.slo.answers > 0)
    json["slo"] = {{"answers", s.slo.answers},
                   {"attained", s.slo.attained},
                   {"first_late", s.slo.first_late},
                   {"pace_missed", s.slo.pace_missed},
                   {"attainment", std::round(s.attainment() * 1e6) / 1e6}};
  if (!s.errors.empty()) {
    nlohmann::json& errors = json["errors"] = nlohmann::json::object();
    for (const auto& [kind, seen] : s.errors) errors[kind] = {{"count", seen.count}, {"example", seen.example}};
  }
  for (const MetricSummary& m : s.metrics) {
    if (m.count == 0) continue;
    json["mean_" + m.name + "_ms"] = rounded(m.mean);
    json["median_" + m.name + "_ms"] = rounded(m.median);
    json["std_" + m.name + "_ms"] = rounded(m.std);
    json["max_" + m.name + "_ms"] = rounded(m.max);
    for (size_t i = 0; i < s.percentiles.size(); ++i)
      json[percentile_name(s.percentiles[i]) + "_" + m.name + "_ms"] = rounded(m.percentiles[i]);
  }
  return json;
}

}  // namespace hearth
