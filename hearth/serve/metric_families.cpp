// SPDX-License-Identifier: Apache-2.0
#include "hearth/serve/metric_families.h"

namespace hearth::metric_families {
namespace {

template <class Value>
MetricFamily by_model(const std::vector<ModelStats>& stats, MetricType type, const char* name, const char* help,
                      Value value) {
  MetricFamily f = family(name, help, type);
  for (const ModelStats& model : stats)
    f.metric.push_back(number(type, model_labels(model.model), static_cast<double>(value(model))));
  return f;
}

void add_model_gauges(const std::vector<ModelStats>& stats, std::vector<MetricFamily>& out) {
  const auto gauge = [&](const char* name, const char* help, auto value) {
    out.push_back(by_model(stats, MetricType::Gauge, name, help, value));
  };
  gauge("vllm:num_requests_running", "Choices that run.", [](const ModelStats& m) { return m.running; });
  gauge("vllm:num_requests_waiting", "Choices that wait to be admitted, or again after a preemption.",
        [](const ModelStats& m) { return m.waiting; });
  gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", [](const ModelStats& m) {
    return m.kv_blocks > 0 ? static_cast<double>(m.kv_blocks_used) / static_cast<double>(m.kv_blocks) : 0.0;
  });
  MetricFamily config = family("vllm:cache_config_info", "The KV pool, in labels.", MetricType::Gauge);
  for (const ModelStats& model : stats) {
    Labels labels = model_labels(model.model);
    labels.push_back({"block_size", std::to_string(model.block_tokens)});
    labels.push_back({"num_gpu_blocks", std::to_string(model.kv_blocks)});
    config.metric.push_back(number(MetricType::Gauge, std::move(labels), 1));
  }
  out.push_back(std::move(config));
}

// A model's part of the KV pool that it shares.
void add_model_kv(const std::vector<ModelStats>& stats, std::vector<MetricFamily>& out) {
  const auto add = [&](MetricType type, const char* name, const char* help, auto value) {
    out.push_back(by_model(stats, type, name, help, value));
  };
  add(MetricType::Counter, "vllm:prefix_cache_queries_total", "Tokens of whole blocks looked for in the prefix cache.",
      [](const ModelStats& m) { return m.kv.asked_blocks * m.block_tokens; });
  add(MetricType::Counter, "vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.",
      [](const ModelStats& m) { return m.kv.hit_blocks * m.block_tokens; });
  add(MetricType::Counter, "hearth_kv_evicted_blocks_total", "Cached KV blocks that gave way.",
      [](const ModelStats& m) { return m.kv.evicted_blocks; });
  add(MetricType::Gauge, "hearth_kv_cached_blocks", "KV blocks that only the prefix cache holds.",
      [](const ModelStats& m) { return m.kv.cached; });
  add(MetricType::Gauge, "hearth_kv_borrowed_blocks", "KV blocks in use above what the model is guaranteed.",
      [](const ModelStats& m) { return m.kv.borrowed; });
  add(MetricType::Gauge, "hearth_kv_unused_blocks", "KV blocks that the model is guaranteed and does not use.",
      [](const ModelStats& m) { return m.kv.unused; });
  add(MetricType::Gauge, "hearth_kv_tokens_per_byte", "Tokens a second that a byte more of KV memory would bring.",
      [](const ModelStats& m) { return m.kv.tokens_per_byte; });
}

// Answers with targets, and what became of these.
void add_attainment(const std::vector<ModelStats>& stats, std::vector<MetricFamily>& out) {
  const auto counter = [&](const char* name, const char* help, int64_t SloCounts::*field) {
    out.push_back(
        by_model(stats, MetricType::Counter, name, help, [field](const ModelStats& m) { return m.attainment.*field; }));
  };
  counter("hearth_slo_answers_total", "Ended choices that had targets of latency.", &SloCounts::answers);
  counter("hearth_slo_attained_total", "Of these, those that kept both targets.", &SloCounts::attained);
  counter("hearth_slo_first_token_late_total", "Of these, those whose first token came late or never.",
          &SloCounts::first_late);
  counter("hearth_slo_pace_missed_total", "Of these, those whose tokens after the first came too slowly.",
          &SloCounts::pace_missed);
  counter("hearth_slo_refused_total", "Of these, those refused because their first token would have been late.",
          &SloCounts::refused);
  const auto target = [&](const char* name, const char* help, int64_t Slo::*field) {
    out.push_back(by_model(stats, MetricType::Gauge, name, help,
                           [field](const ModelStats& m) { return static_cast<double>(m.slo.*field) * 1e-6; }));
  };
  target("hearth_slo_ttft_seconds", "Target for the first token, of requests that name none; 0: none.", &Slo::ttft_us);
  target("hearth_slo_tpot_seconds", "Target for each token after it, of requests that name none; 0: none.",
         &Slo::tpot_us);
}

}  // namespace

void add_model_stats(const std::vector<ModelStats>& stats, std::vector<MetricFamily>& out) {
  add_model_gauges(stats, out);
  add_model_kv(stats, out);
  add_attainment(stats, out);
  out.push_back(by_model(stats, MetricType::Counter, "hearth_device_seconds_total", "Time of the model's steps.",
                         [](const ModelStats& m) { return m.device_s; }));
  out.push_back(by_model(stats, MetricType::Counter, "hearth_kv_swapped_out_total",
                         "Of vllm:num_preemptions_total, those whose KV was kept in host memory.",
                         [](const ModelStats& m) { return m.swapped_out; }));
  out.push_back(by_model(stats, MetricType::Gauge, "hearth_kv_swap_bytes",
                         "Host memory with KV of preempted choices, of all models of the device.",
                         [](const ModelStats& m) { return m.swap_bytes; }));
  out.push_back(by_model(stats, MetricType::Gauge, "hearth_model_weight",
                         "The model's part of the device's time beside others that have work too.",
                         [](const ModelStats& m) { return m.weight; }));
}

void add_kv_pools(const std::vector<KvPoolStats>& pools, std::vector<MetricFamily>& out) {
  MetricFamily bytes = family(
      "hearth_kv_pool_bytes",
      "The KV pool: live and cached blocks, free columns and tails of slabs in use, empty slabs.", MetricType::Gauge);
  MetricFamily slabs = family("hearth_kv_slabs", "Slabs by the size of their blocks; 0: empty.", MetricType::Gauge);
  MetricFamily moved =
      family("hearth_kv_moved_blocks_total", "KV blocks that moved to make a slab empty.", MetricType::Counter);
  for (size_t i = 0; i < pools.size(); ++i) {
    const KvPoolStats& pool = pools[i];
    const std::string name = std::to_string(i);
    const auto state = [&](const char* label, int64_t value) {
      bytes.metric.push_back(number(MetricType::Gauge, {{"pool", name}, {"state", label}}, static_cast<double>(value)));
    };
    state("live", pool.live_bytes);
    state("cached", pool.cached_bytes);
    state("free", pool.free_bytes);
    state("tail", pool.tail_bytes);
    state("empty", pool.pool_bytes - pool.live_bytes - pool.cached_bytes - pool.free_bytes - pool.tail_bytes);
    const auto format = [&](int64_t block_bytes, int64_t count) {
      slabs.metric.push_back(number(MetricType::Gauge, {{"pool", name}, {"block_bytes", std::to_string(block_bytes)}},
                                    static_cast<double>(count)));
    };
    format(0, pool.empty_slabs);
    for (const KvFormatStats& f : pool.formats) format(f.block_bytes, f.slabs);
    moved.metric.push_back(number(MetricType::Counter, {{"pool", name}}, static_cast<double>(pool.moved_blocks)));
  }
  for (MetricFamily* f : {&bytes, &slabs, &moved}) out.push_back(std::move(*f));
}

}  // namespace hearth::metric_families
