// SPDX-License-Identifier: Apache-2.0
// Counts are kept in arrays of our own and become prometheus-cpp's families at a scrape: its metric objects
// would take a mutex each, some thirty for one step.
#include "hearth/serve/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <tuple>

#include "hearth/base/version.h"
#include "hearth/serve/metric_families.h"
#include "hearth/serve/process_stats.h"

namespace hearth {
namespace {

using namespace metric_families;

// ---- histograms -----------------------------------------------------------------------------------------

// Upper bounds; those of vLLM's histograms are vLLM's, so that its dashboards' quantiles are comparable.
constexpr double kFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kBetweenTokens[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                     .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
constexpr double kRequest[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                               30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kTokens[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                              2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
constexpr double kChoices[] = {1, 2, 5, 10, 20};
constexpr double kStepTokens[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
// Ours.
constexpr double kStepSeconds[] = {.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10};
constexpr double kErrorRatio[] = {.01, .02, .05, .1, .2, .5, 1, 2, 5};
constexpr double kHttpSeconds[] = {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300};

constexpr size_t kMaxBounds = 22;

// Plain numbers: copying one is copying memory.
struct Histogram {
  std::span<const double> bounds;
  std::array<uint64_t, kMaxBounds + 1> counts{};  // the last used one: above all bounds
  double sum = 0;

  void add(double value) {
    const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin();
    ++counts[static_cast<size_t>(bucket)];
    sum += value;
  }
};

struct HistogramName {
  const char* name;
  const char* help;
  std::span<const double> bounds;
};

// Of each model.
enum HistogramId : size_t {
  kTtft,
  kInterToken,
  kTimePerOutputToken,
  kEndToEnd,
  kQueue,
  kInference,
  kPrefill,
  kDecode,
  kPromptTokens,
  kGenerationTokens,
  kMaxGenerationTokens,
  kParamsN,
  kParamsMaxTokens,
  kIterationTokens,
  kStep,
  kPredictionError,
  kHistogramCount,
};

const std::array<HistogramName, kHistogramCount> kHistograms = {{
    {"vllm:time_to_first_token_seconds", "From the submission to the first token.", kFirstToken},
    {"vllm:inter_token_latency_seconds", "Between two tokens of a choice.", kBetweenTokens},
    {"vllm:request_time_per_output_token_seconds", "A choice's mean time per token after the first.", kBetweenTokens},
    {"vllm:e2e_request_latency_seconds", "From the submission to the end.", kRequest},
    {"vllm:request_queue_time_seconds", "From the submission to the admission.", kRequest},
    {"vllm:request_inference_time_seconds", "From the admission to the end.", kRequest},
    {"vllm:request_prefill_time_seconds", "From the admission to the first token.", kRequest},
    {"vllm:request_decode_time_seconds", "From the first token to the end.", kRequest},
    {"vllm:request_prompt_tokens", "Tokens of the prompt.", kTokens},
    {"vllm:request_generation_tokens", "Tokens generated for a choice.", kTokens},
    {"vllm:request_max_num_generation_tokens", "Tokens generated for the longest choice of a request.", kTokens},
    {"vllm:request_params_n", "Choices asked for.", kChoices},
    {"vllm:request_params_max_tokens", "Tokens allowed for a choice.", kTokens},
    {"vllm:iteration_tokens_total", "Tokens fed in a step.", kStepTokens},
    {"hearth_step_seconds", "Measured time of a step.", kStepSeconds},
    {"hearth_step_prediction_error_ratio", "How far the cost model was off: |predicted - measured| / measured.",
     kErrorRatio},
}};

// ---- state ----------------------------------------------------------------------------------------------

constexpr size_t kReasons = 4;
// By FinishReason, in vLLM's words.
constexpr std::array<const char*, kReasons> kReasonNames = {"stop", "length", "abort", "error"};

struct ModelCounts {
  std::array<Histogram, kHistogramCount> histograms;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int64_t preemptions = 0;
  int64_t predicted_steps = 0, predicted_us = 0, measured_us = 0;  // of steps that were predicted
  std::array<int64_t, kReasons> finished{};

  ModelCounts() {
    for (size_t i = 0; i < kHistogramCount; ++i) histograms[i].bounds = kHistograms[i].bounds;
  }
};

struct ModelEntry {
  std::string name;
  ModelCounts counts;
};

// A request of several choices, until its last one has finished.
struct OpenRequest {
  int32_t finished = 0;
  int64_t max_generated = 0;
};
// Requests that never complete their choices (two of one id) must not add up.
constexpr size_t kMaxOpenRequests = 65536;

// More routes than we have: whoever calls on_http() breaks I2.
constexpr size_t kMaxRoutes = 64;

std::string_view known_method(std::string_view method) {
  for (const std::string_view known : {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
    if (method == known) return known;
  return "other";
}

// ---- families -------------------------------------------------------------------------------------------

ClientMetric histogram(Labels labels, const Histogram& from) {
  ClientMetric metric;
  metric.label = std::move(labels);
  uint64_t below = 0;
  for (size_t i = 0; i <= from.bounds.size(); ++i) {
    below += from.counts[i];
    const double bound = i < from.bounds.size() ? from.bounds[i] : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({below, bound});
  }
  metric.histogram.sample_count = below;
  metric.histogram.sample_sum = from.sum;
  return metric;
}

void add_model_counts(const std::vector<ModelEntry>& models, std::vector<MetricFamily>& out) {
  const auto counter = [&](const char* name, const char* help, int64_t ModelCounts::*field) {
    MetricFamily f = family(name, help, MetricType::Counter);
    for (const ModelEntry& model : models)
      f.metric.push_back(
          number(MetricType::Counter, model_labels(model.name), static_cast<double>(model.counts.*field)));
    out.push_back(std::move(f));
  };
  counter("vllm:prompt_tokens_total", "Prompt tokens fed.", &ModelCounts::prompt_tokens);
  counter("vllm:generation_tokens_total", "Tokens generated.", &ModelCounts::generation_tokens);
  counter("vllm:num_preemptions_total", "Choices that gave up their KV to others for a while.",
          &ModelCounts::preemptions);
  MetricFamily finished =
      family("vllm:request_success_total", "Finished choices, by the reason of their end.", MetricType::Counter);
  for (const ModelEntry& model : models) {
    for (size_t i = 0; i < kReasons; ++i) {
      Labels labels = model_labels(model.name);
      labels.push_back({"finished_reason", kReasonNames[i]});
      finished.metric.push_back(
          number(MetricType::Counter, std::move(labels), static_cast<double>(model.counts.finished[i])));
    }
  }
  out.push_back(std::move(finished));
  for (size_t i = 0; i < kHistogramCount; ++i) {
    MetricFamily f = family(kHistograms[i].name, kHistograms[i].help, MetricType::Histogram);
    for (const ModelEntry& model : models)
      f.metric.push_back(histogram(model_labels(model.name), model.counts.histograms[i]));
    out.push_back(std::move(f));
  }
}

void add_process(std::vector<MetricFamily>& out) {
  const ProcessStats p = read_process_stats();
  out.push_back(single("process_cpu_seconds_total", "CPU time of the process, user and system.", MetricType::Counter,
                       p.cpu_seconds));
  out.push_back(single("process_resident_memory_bytes", "Resident memory.", MetricType::Gauge,
                       static_cast<double>(p.resident_bytes)));
  out.push_back(single("process_virtual_memory_bytes", "Virtual memory.", MetricType::Gauge,
                       static_cast<double>(p.virtual_bytes)));
  out.push_back(
      single("process_open_fds", "Open file descriptors.", MetricType::Gauge, static_cast<double>(p.open_fds)));
  out.push_back(single("process_max_fds", "Most file descriptors that may be open.", MetricType::Gauge,
                       static_cast<double>(p.max_fds)));
  out.push_back(single("process_start_time_seconds", "Start of the process, in seconds since 1970.", MetricType::Gauge,
                       p.start_seconds));
  const BuildInfo& build = build_info();
  out.push_back(single("hearth_build_info", "What runs, in labels.", MetricType::Gauge, 1,
                       {{"version", std::string(build.version)},
                        {"commit", std::string(build.commit)},
                        {"compiler", std::string(build.compiler)},
                        {"build", std::string(build.build)}}));
}

}  // namespace

// ---- Metrics --------------------------------------------------------------------------------------------

struct Metrics::Impl {
  using Route = std::pair<std::string, std::string>;  // pattern, method
  struct RouteCounts {
    std::map<int, uint64_t> by_status;
    Histogram seconds{.bounds = kHttpSeconds};
  };
  using Routes = std::map<Route, RouteCounts>;

  mutable std::mutex engine_mutex;
  std::vector<ModelEntry> models;                        // guarded by engine_mutex
  std::map<std::string, OpenRequest, std::less<>> open;  // guarded by engine_mutex
  mutable std::mutex http_mutex;
  Routes routes;  // guarded by http_mutex
  mutable std::mutex stats_mutex;
  StatsSource stats;  // guarded by stats_mutex
  PoolSource pools;   // guarded by stats_mutex

  // REQUIRES: engine_mutex is held.
  ModelCounts& model(std::string_view name) {
    for (ModelEntry& entry : models)
      if (entry.name == name) return entry.counts;
    models.push_back({std::string(name), {}});
    return models.back().counts;
  }

  // Tokens of the request's longest choice once this was its last; nothing before. REQUIRES: engine_mutex is held.
  std::optional<int64_t> finish_request(const ChoiceRecord& record) {
    if (record.n <= 1) return record.generated_tokens;
    std::string key = std::string(record.model) + '\n' + std::string(record.request);
    if (open.size() >= kMaxOpenRequests && !open.contains(key)) open.clear();
    const auto it = open.try_emplace(std::move(key)).first;
    OpenRequest& request = it->second;
    request.max_generated = std::max(request.max_generated, record.generated_tokens);
    if (++request.finished < record.n) return std::nullopt;
    const int64_t most = request.max_generated;
    open.erase(it);
    return most;
  }
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

void Metrics::set_stats(StatsSource source, PoolSource pools) {
  const std::lock_guard lock(impl_->stats_mutex);
  impl_->stats = std::move(source);
  impl_->pools = std::move(pools);
}

void Metrics::on_step(const StepRecord& record) noexcept try {
  const double measured_s = static_cast<double>(record.measured_us) * 1e-6;
  const std::lock_guard lock(impl_->engine_mutex);
  ModelCounts& m = impl_->model(record.model);
  // The last token of a prompt, which brings the first of the output, is none of the engine's prefill_tokens.
  m.prompt_tokens += record.features.prefill_tokens + std::ssize(record.ttft_s);
  m.generation_tokens += record.generated_tokens;
  m.preemptions += record.preemptions;
  m.histograms[kIterationTokens].add(static_cast<double>(record.features.tokens));
  m.histograms[kStep].add(measured_s);
  if (record.predicted_us > 0 && record.measured_us > 0) {
    ++m.predicted_steps;
    m.predicted_us += record.predicted_us;
    m.measured_us += record.measured_us;
    const double off = static_cast<double>(std::abs(record.predicted_us - record.measured_us));
    m.histograms[kPredictionError].add(off / static_cast<double>(record.measured_us));
  }
  for (const float seconds : record.ttft_s) m.histograms[kTtft].add(static_cast<double>(seconds));
  for (const float seconds : record.inter_token_s) m.histograms[kInterToken].add(static_cast<double>(seconds));
} catch (const std::exception&) {
  // I3
}

void Metrics::on_choice(const ChoiceRecord& r) noexcept try {
  const std::lock_guard lock(impl_->engine_mutex);
  ModelCounts& m = impl_->model(r.model);
  const size_t reason = static_cast<size_t>(r.reason);
  if (reason < kReasons) ++m.finished[reason];
  m.histograms[kEndToEnd].add(r.finished_s);
  if (r.admitted_s >= 0) {
    m.histograms[kQueue].add(r.admitted_s);
    m.histograms[kInference].add(r.finished_s - r.admitted_s);
  }
  if (r.first_token_s >= 0) {
    if (r.admitted_s >= 0) m.histograms[kPrefill].add(r.first_token_s - r.admitted_s);
    const double decode_s = r.finished_s - r.first_token_s;
    m.histograms[kDecode].add(decode_s);
    if (r.generated_tokens > 1)
      m.histograms[kTimePerOutputToken].add(decode_s / static_cast<double>(r.generated_tokens - 1));
  }
  m.histograms[kPromptTokens].add(static_cast<double>(r.prompt_tokens));
  m.histograms[kGenerationTokens].add(static_cast<double>(r.generated_tokens));
  m.histograms[kParamsMaxTokens].add(static_cast<double>(r.max_tokens));
  if (const auto most = impl_->finish_request(r)) {
    m.histograms[kMaxGenerationTokens].add(static_cast<double>(*most));
    m.histograms[kParamsN].add(static_cast<double>(r.n));
  }
} catch (const std::exception&) {
  // I3
}

void Metrics::on_http(std::string_view route, std::string_view method, int status, double seconds) {
  const std::lock_guard lock(impl_->http_mutex);
  Impl::Route key{route, known_method(method)};
  if (impl_->routes.size() >= kMaxRoutes && !impl_->routes.contains(key)) key.first = "other";
  Impl::RouteCounts& counts = impl_->routes[std::move(key)];
  ++counts.by_status[status >= 100 && status <= 599 ? status : 0];
  counts.seconds.add(seconds);
}

std::optional<Metrics::Work> Metrics::work_of(std::string_view model) const {
  const std::lock_guard lock(impl_->engine_mutex);
  for (const ModelEntry& entry : impl_->models) {
    if (entry.name != model) continue;
    const ModelCounts& counts = entry.counts;
    return Work{.preemptions = counts.preemptions,
                .predicted_steps = counts.predicted_steps,
                .predicted_s = static_cast<double>(counts.predicted_us) * 1e-6,
                .measured_s = static_cast<double>(counts.measured_us) * 1e-6};
  }
  return std::nullopt;
}

std::string Metrics::text() const {
  StatsSource source;
  PoolSource pools;
  {
    const std::lock_guard lock(impl_->stats_mutex);
    source = impl_->stats;
    pools = impl_->pools;
  }
  const std::vector<ModelStats> stats = source ? source() : std::vector<ModelStats>();
  std::vector<ModelEntry> models;
  models.reserve(16);
  {
    const std::lock_guard lock(impl_->engine_mutex);
    for (const ModelStats& model : stats) impl_->model(model.model);
    models = impl_->models;
  }
  Impl::Routes routes;
  {
    const std::lock_guard lock(impl_->http_mutex);
    routes = impl_->routes;
  }

  std::vector<MetricFamily> families;
  add_model_stats(stats, families);
  if (pools) add_kv_pools(pools(), families);
  add_model_counts(models, families);
  MetricFamily requests =
      family("http_requests_total", "HTTP answers, by route, method and status.", MetricType::Counter);
  MetricFamily seconds = family("http_request_duration_seconds",
                                "From a request's header to the last byte of its answer.", MetricType::Histogram);
  for (const auto& [route, counts] : routes) {
    const Labels labels = {{"handler", route.first}, {"method", route.second}};
    for (const auto& [status, count] : counts.by_status) {
      Labels with_status = labels;
      with_status.push_back({"status", std::to_string(status)});
      requests.metric.push_back(number(MetricType::Counter, std::move(with_status), static_cast<double>(count)));
    }
    seconds.metric.push_back(histogram(labels, counts.seconds));
  }
  families.push_back(std::move(requests));
  families.push_back(std::move(seconds));
  add_process(families);
  std::erase_if(families, [](const MetricFamily& f) { return f.metric.empty(); });
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace hearth
