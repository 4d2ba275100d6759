// SPDX-License-Identifier: Apache-2.0
// The numbers of a load test: distributions of latencies, throughput, goodput, for people and as JSON. Latencies are
// in milliseconds; their names are those of vLLM's benchmark. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/client/load.h"
#include "hearth/schedule/attainment.h"

namespace hearth {

// The p-th percentile of ascending values, linear between the two nearest ranks (Hyndman and Fan's type 7, the
// usual one of statistics packages); 0 where there are none.
double percentile(std::span<const double> sorted, double p);

// What a request has to keep to count as good; a limit that is not set is kept.
struct Goals {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
};
// "ttft:200", "tpot:50", "e2el:2000". InvalidArgument.
Result<Goals> parse_goals(const std::vector<std::string>& words);
// "50,90,99" in (0, 100), ascending. InvalidArgument.
Result<std::vector<double>> parse_percentiles(std::string_view text);
// Names of metrics, comma separated. InvalidArgument lists them.
Result<std::vector<std::string>> parse_metrics(std::string_view text);

struct MetricSummary {
  std::string name;   // "ttft"
  std::string title;  // "Time to first token"
  int64_t count = 0;
  double mean = 0, median = 0, std = 0, max = 0;
  std::vector<double> percentiles;  // as asked for
};

struct LoadSummary {
  int64_t planned = 0, done = 0, failed = 0, cancelled = 0, not_sent = 0;
  int64_t prompt_tokens = 0;  // of the done
  int64_t output_tokens = 0;  // of the done, and of the cancelled what came
  int64_t uncounted = 0;      // done requests whose tokens the server did not count
  double seconds = 0;
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;
  std::optional<double> goodput_per_s;
  int64_t good = 0;
  int64_t peak_in_flight = 0, connections = 0;
  bool interrupted = false;
  int64_t warmup = 0;                           // requests that were due before SummaryScope::from_s
  SloCounts slo;                                // of the others
  std::optional<double> arrivals_tokens_per_s;  // output tokens that came within SummaryScope::arrivals_s
  std::vector<double> percentiles;
  // Of the done requests; ttft, tpot and itl of the cancelled ones too, as far as they got.
  // ttft, tpot, itl, e2el from when a request was due; ttft_sent, e2el_sent from when it was sent; delay between.
  std::vector<MetricSummary> metrics;
  struct Errors {
    int64_t count = 0;
    std::string example;
  };
  std::map<std::string, Errors> errors;  // by kind

  double attainment() const;  // 1 where no answer had targets
  const MetricSummary& metric(std::string_view name) const;
};

// Which requests are summed up.
struct SummaryScope {
  std::optional<int64_t> model;      // none: all
  double from_s = 0;                 // latencies and targets are of requests due from then on; the warm-up is before
  std::optional<double> arrivals_s;  // how long requests come
  std::span<const Slo> slos;         // by model; empty: none
};

LoadSummary summarize(const LoadResult& result, std::vector<double> percentiles, const Goals& goals,
                      const SummaryScope& scope = {});

// The table that people read; `shown` names its metrics.
std::string report_table(const LoadSummary& summary, const std::vector<std::string>& shown);

// All numbers; a metric without values is absent: "mean_ttft_ms", "p99_itl_ms", "request_throughput" and others.
nlohmann::json report_json(const LoadSummary& summary);

}  // namespace hearth
