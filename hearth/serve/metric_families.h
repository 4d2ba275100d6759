// SPDX-License-Identifier: Apache-2.0
// prometheus-cpp's families made of plain numbers, and those that show the engine's numbers of this moment.
#pragma once

#include <prometheus/metric_family.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hearth/engine/engine.h"

namespace hearth::metric_families {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

inline MetricFamily family(std::string name, std::string help, MetricType type) {
  MetricFamily out;
  out.name = std::move(name);
  out.help = std::move(help);
  out.type = type;
  return out;
}

inline ClientMetric number(MetricType type, Labels labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return metric;
}

inline MetricFamily single(std::string name, std::string help, MetricType type, double value, Labels labels = {}) {
  MetricFamily out = family(std::move(name), std::move(help), type);
  out.metric.push_back(number(type, std::move(labels), value));
  return out;
}

inline Labels model_labels(const std::string& model) { return {{"engine", "0"}, {"model_name", model}}; }

// Of each model: what runs and waits, its part of the KV pool, its targets.
void add_model_stats(const std::vector<ModelStats>& stats, std::vector<MetricFamily>& out);
void add_kv_pools(const std::vector<KvPoolStats>& pools, std::vector<MetricFamily>& out);

}  // namespace hearth::metric_families
