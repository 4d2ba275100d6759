// SPDX-License-Identifier: Apache-2.0
// Metrics: what the engine and the HTTP server do, in Prometheus' text format under vLLM's names, so that its
// dashboards and gateways work as they are (docs/guides/api.md lists them).
//   I1. on_step() holds a mutex for the additions of one step alone; a scrape holds it for a copy of the numbers
//       and of the models' names, and formats outside. After a model's first step, on_step() allocates nothing;
//       on_choice() does where a request has several choices.
//   I2. Labels are bounded: models of the operator, routes of ours, known methods. Nothing that a client says.
//   I3. on_step() and on_choice() never throw: what cannot be counted for want of memory is not.
// Any thread may call any method.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/engine/engine.h"
#include "hearth/engine/observer.h"

namespace hearth {

inline constexpr std::string_view kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

class Metrics final : public EngineObserver {
 public:
  // Where the gauges of models come from, asked at each scrape (Engine::stats). Models that it names are
  // exported from the first scrape on, with zeros.
  using StatsSource = std::function<std::vector<ModelStats>()>;
  // Of the KV pools, the same (Engine::kv_stats).
  using PoolSource = std::function<std::vector<KvPoolStats>()>;

  Metrics();
  ~Metrics() override;
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The engine is created with its observer, so it is named afterwards. Empty ones: no gauges.
  void set_stats(StatsSource source, PoolSource pools);

  void on_step(const StepRecord& record) noexcept override;
  void on_choice(const ChoiceRecord& record) noexcept override;
  // One HTTP answer. `route` is the pattern that matched, "none" where none did: never a client's path.
  void on_http(std::string_view route, std::string_view method, int status, double seconds);

  // Of a model since it first ran; nullopt: it never did.
  struct Work {
    int64_t preemptions = 0;
    int64_t predicted_steps = 0;             // steps for which the cost model had a prediction
    double predicted_s = 0, measured_s = 0;  // their sums
  };
  std::optional<Work> work_of(std::string_view model) const;

  // Everything, as kMetricsContentType.
  std::string text() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
