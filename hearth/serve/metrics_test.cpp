// SPDX-License-Identifier: Apache-2.0
// The exported text, parsed again by a reader of its own, against counts made by hand.
#include "hearth/serve/metrics.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

namespace hearth {
namespace {

using Labels = std::map<std::string, std::string>;

struct Exposition {
  std::map<std::string, std::string> types;                // family -> counter, gauge, histogram
  std::map<std::string, std::map<Labels, double>> values;  // sample name -> labels -> value

  double at(const std::string& name, const Labels& labels) const {
    const auto samples = values.find(name);
    if (samples == values.end() || !samples->second.contains(labels)) {
      ADD_FAILURE() << "no sample " << name << " with these labels";
      return std::nan("");
    }
    return samples->second.at(labels);
  }
};

// Reads the text format: `# TYPE name type` and `name{key="value",...} number`.
Exposition parse(const std::string& text) {
  Exposition out;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    if (line.starts_with("# TYPE ")) {
      std::istringstream words(line.substr(7));
      std::string name, type;
      words >> name >> type;
      EXPECT_FALSE(out.types.contains(name)) << name << " is given twice";
      out.types[name] = type;
      continue;
    }
    if (line.empty() || line[0] == '#') continue;
    const size_t name_end = line.find_first_of("{ ");
    const std::string name = line.substr(0, name_end);
    Labels labels;
    size_t at = name_end;
    if (line[at] == '{') {
      ++at;
      while (line[at] != '}') {
        const size_t equals = line.find('=', at);
        const std::string key = line.substr(at, equals - at);
        std::string value;
        for (at = equals + 2; line[at] != '"'; ++at) {
          if (line[at] == '\\') ++at;
          value += line[at];
        }
        labels[key] = value;
        at += line[at + 1] == ',' ? 2 : 1;
      }
      ++at;
    }
    EXPECT_TRUE(out.values[name].emplace(labels, std::strtod(line.c_str() + at, nullptr)).second) << line;
  }
  return out;
}

Labels model(const std::string& name, Labels more = {}) {
  more["model_name"] = name;
  more["engine"] = "0";
  return more;
}

StepRecord step(std::string_view name, std::span<const float> ttft, std::span<const float> inter) {
  StepRecord record;
  record.model = name;
  record.features = {.tokens = 20, .prefill_tokens = 17, .sequences = 4, .context_tokens = 300, .logit_rows = 4};
  record.predicted_us = 1500;
  record.measured_us = 2000;
  record.generated_tokens = static_cast<int64_t>(ttft.size() + inter.size());
  record.preemptions = 1;
  record.ttft_s = ttft;
  record.inter_token_s = inter;
  return record;
}

// Every histogram of the text: buckets that never fall, the last one +Inf and equal to _count.
void expect_sound_histograms(const Exposition& e) {
  for (const auto& [name, type] : e.types) {
    if (type != "histogram") continue;
    std::map<Labels, std::map<double, double>> buckets;
    const auto found = e.values.find(name + "_bucket");
    ASSERT_NE(found, e.values.end()) << name;
    for (const auto& [all_labels, count] : found->second) {
      Labels labels = all_labels;
      const std::string le = labels.at("le");
      labels.erase("le");
      buckets[labels][le == "+Inf" ? INFINITY : std::strtod(le.c_str(), nullptr)] = count;
    }
    for (const auto& [labels, counts] : buckets) {
      double before = 0;
      for (const auto& [bound, count] : counts) {
        EXPECT_GE(count, before) << name << " at " << bound;
        before = count;
      }
      EXPECT_EQ(counts.rbegin()->first, INFINITY) << name;
      EXPECT_EQ(e.at(name + "_count", labels), before) << name;
      EXPECT_TRUE(std::isfinite(e.at(name + "_sum", labels))) << name;
    }
  }
}

TEST(Metrics, StepsAreCounted) {
  Metrics metrics;
  const float ttft[] = {0.003f, 0.3f}, inter[] = {0.01f, 0.02f, 100.0f};
  metrics.on_step(step("fable", ttft, inter));
  metrics.on_step(step("fable", {}, inter));
  const Exposition e = parse(metrics.text());
  expect_sound_histograms(e);
  const Labels fable = model("fable");
  EXPECT_EQ(e.types.at("vllm:prompt_tokens_total"), "counter");
  EXPECT_EQ(e.at("vllm:prompt_tokens_total", fable), 36);  // the last tokens of two prompts, too
  EXPECT_EQ(e.at("vllm:generation_tokens_total", fable), 8);
  EXPECT_EQ(e.at("vllm:num_preemptions_total", fable), 2);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_count", fable), 2);
  EXPECT_NEAR(e.at("vllm:time_to_first_token_seconds_sum", fable), 0.303, 1e-6);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_bucket", model("fable", {{"le", "0.001"}})), 0);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_bucket", model("fable", {{"le", "0.005"}})), 1);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_bucket", model("fable", {{"le", "0.25"}})), 1);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_bucket", model("fable", {{"le", "0.5"}})), 2);
  // 100 s lies above every bound.
  EXPECT_EQ(e.at("vllm:inter_token_latency_seconds_bucket", model("fable", {{"le", "80"}})), 4);
  EXPECT_EQ(e.at("vllm:inter_token_latency_seconds_bucket", model("fable", {{"le", "+Inf"}})), 6);
  EXPECT_EQ(e.at("vllm:iteration_tokens_total_bucket", model("fable", {{"le", "16"}})), 0);
  EXPECT_EQ(e.at("vllm:iteration_tokens_total_bucket", model("fable", {{"le", "32"}})), 2);
  EXPECT_EQ(e.at("vllm:iteration_tokens_total_sum", fable), 40);
  EXPECT_NEAR(e.at("hearth_step_seconds_sum", fable), 0.004, 1e-9);
  EXPECT_NEAR(e.at("hearth_step_prediction_error_ratio_sum", fable), 0.5, 1e-9);
}

TEST(Metrics, ABoundBelongsToItsBucket) {
  Metrics metrics;
  StepRecord record = step("m", {}, {});
  record.features.tokens = 8;
  record.predicted_us = 0;  // no prediction yet: no error either
  metrics.on_step(record);
  const Exposition e = parse(metrics.text());
  EXPECT_EQ(e.at("vllm:iteration_tokens_total_bucket", model("m", {{"le", "1"}})), 0);
  EXPECT_EQ(e.at("vllm:iteration_tokens_total_bucket", model("m", {{"le", "8"}})), 1);
  EXPECT_EQ(e.at("hearth_step_prediction_error_ratio_count", model("m")), 0);
}

TEST(Metrics, ChoicesAreCountedByTheirTimes) {
  Metrics metrics;
  ChoiceRecord record;
  record.model = "fable";
  record.request = "r1";
  record.reason = FinishReason::kLength;
  record.prompt_tokens = 30;
  record.generated_tokens = 11;
  record.max_tokens = 11;
  record.admitted_s = 0.25;
  record.first_token_s = 1;
  record.finished_s = 3;
  metrics.on_choice(record);
  // Cancelled while it waited.
  ChoiceRecord waiting;
  waiting.model = "fable";
  waiting.request = "r2";
  waiting.reason = FinishReason::kCancelled;
  waiting.prompt_tokens = 5;
  waiting.finished_s = 9;
  metrics.on_choice(waiting);
  const Exposition e = parse(metrics.text());
  expect_sound_histograms(e);
  const Labels fable = model("fable");
  EXPECT_EQ(e.at("vllm:request_success_total", model("fable", {{"finished_reason", "length"}})), 1);
  EXPECT_EQ(e.at("vllm:request_success_total", model("fable", {{"finished_reason", "abort"}})), 1);
  EXPECT_EQ(e.at("vllm:request_success_total", model("fable", {{"finished_reason", "stop"}})), 0);
  EXPECT_EQ(e.at("vllm:request_success_total", model("fable", {{"finished_reason", "error"}})), 0);
  const auto sum_and_count = [&](const std::string& name, double sum, double count) {
    EXPECT_NEAR(e.at("vllm:" + name + "_sum", fable), sum, 1e-9) << name;
    EXPECT_EQ(e.at("vllm:" + name + "_count", fable), count) << name;
  };
  sum_and_count("e2e_request_latency_seconds", 12, 2);
  sum_and_count("request_queue_time_seconds", 0.25, 1);
  sum_and_count("request_inference_time_seconds", 2.75, 1);
  sum_and_count("request_prefill_time_seconds", 0.75, 1);
  sum_and_count("request_decode_time_seconds", 2, 1);
  sum_and_count("request_time_per_output_token_seconds", 0.2, 1);
  sum_and_count("request_prompt_tokens", 35, 2);
  sum_and_count("request_generation_tokens", 11, 2);
  sum_and_count("request_max_num_generation_tokens", 11, 2);
  sum_and_count("request_params_n", 2, 2);
  sum_and_count("request_params_max_tokens", 11, 2);
}

// n and the longest choice are counted once a request, whatever order its choices end in.
TEST(Metrics, ChoicesOfOneRequestMakeOneRequest) {
  Metrics metrics;
  ChoiceRecord record;
  record.model = "m";
  record.n = 3;
  for (const int64_t tokens : {4, 9, 2}) {
    record.request = "a";
    record.generated_tokens = tokens;
    metrics.on_choice(record);
    if (tokens == 9) {
      EXPECT_EQ(parse(metrics.text()).at("vllm:request_params_n_count", model("m")), 0);
    }
  }
  const Exposition e = parse(metrics.text());
  EXPECT_EQ(e.at("vllm:request_params_n_sum", model("m")), 3);
  EXPECT_EQ(e.at("vllm:request_params_n_count", model("m")), 1);
  EXPECT_EQ(e.at("vllm:request_max_num_generation_tokens_sum", model("m")), 9);
  EXPECT_EQ(e.at("vllm:request_generation_tokens_sum", model("m")), 15);
}

TEST(Metrics, GaugesComeFromTheSourceAtEachScrape) {
  Metrics metrics;
  EXPECT_FALSE(parse(metrics.text()).types.contains("vllm:num_requests_running"));
  int64_t running = 2;
  const auto pools = [] {
    return std::vector<KvPoolStats>{{.pool_bytes = 1000,
                                     .slabs = 10,
                                     .empty_slabs = 6,
                                     .live_bytes = 300,
                                     .cached_bytes = 60,
                                     .free_bytes = 30,
                                     .tail_bytes = 10,
                                     .moved_blocks = 8,
                                     .formats = {{.block_bytes = 20, .slabs = 4}}}};
  };
  const auto models = [&] {
    return std::vector<ModelStats>{
        {.model = "a \"b\"\\c",
         .running = running,
         .waiting = 7,
         .kv_blocks = 200,
         .kv_blocks_used = 50,
         .block_tokens = 16,
         .max_sequences = 64,
         .kv = {.cached = 3, .borrowed = 4, .asked_blocks = 9, .hit_blocks = 5},
         .slo = {.ttft_us = 500'000, .tpot_us = 20'000},
         .attainment = {.answers = 9, .attained = 5, .first_late = 3, .pace_missed = 2, .refused = 1},
         .weight = 3,
         .device_s = 1.5,
         .swapped_out = 6,
         .swap_bytes = 4096},
        {.model = "empty"}};
  };
  metrics.set_stats(models, pools);
  Exposition e = parse(metrics.text());
  const Labels odd = model("a \"b\"\\c");
  EXPECT_EQ(e.types.at("vllm:num_requests_running"), "gauge");
  EXPECT_EQ(e.at("vllm:num_requests_running", odd), 2);
  EXPECT_EQ(e.at("vllm:num_requests_waiting", odd), 7);
  EXPECT_EQ(e.at("vllm:kv_cache_usage_perc", odd), 0.25);
  EXPECT_EQ(e.at("vllm:kv_cache_usage_perc", model("empty")), 0);
  EXPECT_EQ(e.at("vllm:cache_config_info", model("a \"b\"\\c", {{"block_size", "16"}, {"num_gpu_blocks", "200"}})), 1);
  EXPECT_EQ(e.types.at("vllm:prefix_cache_hits_total"), "counter");
  EXPECT_EQ(e.at("vllm:prefix_cache_queries_total", odd), 144);
  EXPECT_EQ(e.at("vllm:prefix_cache_hits_total", odd), 80);
  EXPECT_EQ(e.at("hearth_kv_cached_blocks", odd), 3);
  EXPECT_EQ(e.at("hearth_kv_borrowed_blocks", odd), 4);
  EXPECT_EQ(e.types.at("hearth_slo_answers_total"), "counter");
  EXPECT_EQ(e.at("hearth_slo_answers_total", odd), 9);
  EXPECT_EQ(e.at("hearth_slo_attained_total", odd), 5);
  EXPECT_EQ(e.at("hearth_slo_first_token_late_total", odd), 3);
  EXPECT_EQ(e.at("hearth_slo_pace_missed_total", odd), 2);
  EXPECT_EQ(e.at("hearth_slo_refused_total", odd), 1);
  EXPECT_EQ(e.at("hearth_device_seconds_total", odd), 1.5);
  EXPECT_EQ(e.at("hearth_model_weight", odd), 3);
  EXPECT_EQ(e.at("hearth_kv_swapped_out_total", odd), 6);
  EXPECT_EQ(e.at("hearth_kv_swap_bytes", odd), 4096);
  EXPECT_EQ(e.at("hearth_slo_ttft_seconds", odd), 0.5);
  EXPECT_EQ(e.at("hearth_slo_tpot_seconds", odd), 0.02);
  EXPECT_EQ(e.at("hearth_slo_tpot_seconds", model("empty")), 0);
  EXPECT_EQ(e.at("hearth_kv_pool_bytes", {{"pool", "0"}, {"state", "live"}}), 300);
  EXPECT_EQ(e.at("hearth_kv_pool_bytes", {{"pool", "0"}, {"state", "empty"}}), 600);
  EXPECT_EQ(e.at("hearth_kv_slabs", {{"pool", "0"}, {"block_bytes", "20"}}), 4);
  EXPECT_EQ(e.at("hearth_kv_slabs", {{"pool", "0"}, {"block_bytes", "0"}}), 6);
  EXPECT_EQ(e.at("hearth_kv_moved_blocks_total", {{"pool", "0"}}), 8);
  // Before its first request a model has its counters and histograms, at zero.
  EXPECT_EQ(e.at("vllm:generation_tokens_total", odd), 0);
  EXPECT_EQ(e.at("vllm:time_to_first_token_seconds_count", model("empty")), 0);
  running = 5;
  EXPECT_EQ(parse(metrics.text()).at("vllm:num_requests_running", odd), 5);
}

TEST(Metrics, HttpAnswersByRouteMethodAndStatus) {
  Metrics metrics;
  metrics.on_http("/v1/completions", "POST", 200, 0.2);
  metrics.on_http("/v1/completions", "POST", 200, 0.002);
  metrics.on_http("/v1/completions", "POST", 429, 0.0001);
  metrics.on_http("/health", "BREW", 405, 0.0001);
  Exposition e = parse(metrics.text());
  expect_sound_histograms(e);
  const auto labels = [](const char* handler, const char* method, const char* status) {
    Labels l = {{"handler", handler}, {"method", method}};
    if (*status) l["status"] = status;
    return l;
  };
  EXPECT_EQ(e.at("http_requests_total", labels("/v1/completions", "POST", "200")), 2);
  EXPECT_EQ(e.at("http_requests_total", labels("/v1/completions", "POST", "429")), 1);
  EXPECT_EQ(e.at("http_requests_total", labels("/health", "other", "405")), 1);
  EXPECT_NEAR(e.at("http_request_duration_seconds_sum", labels("/v1/completions", "POST", "")), 0.2021, 1e-9);
  // Whatever comes in, the number of series is bounded.
  for (int i = 0; i < 1000; ++i) metrics.on_http("/" + std::to_string(i), "M" + std::to_string(i), i * 1000, 0.1);
  e = parse(metrics.text());
  EXPECT_LT(e.values.at("http_requests_total").size(), 100u);
  EXPECT_LT(e.values.at("http_request_duration_seconds_count").size(), 100u);
}

TEST(Metrics, TheProcessAndTheBuild) {
  Metrics metrics;
  std::vector<std::ifstream> files;
  const double before = parse(metrics.text()).at("process_open_fds", {});
  for (int i = 0; i < 5; ++i) files.emplace_back("/proc/self/stat");
  const Exposition e = parse(metrics.text());
  EXPECT_EQ(e.at("process_open_fds", {}), before + 5);
  EXPECT_GT(e.at("process_resident_memory_bytes", {}), 1e6);
  EXPECT_GE(e.at("process_virtual_memory_bytes", {}), e.at("process_resident_memory_bytes", {}));
  EXPECT_GT(e.at("process_max_fds", {}), before);
  EXPECT_GT(e.at("process_cpu_seconds_total", {}), 0);
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  EXPECT_NEAR(e.at("process_start_time_seconds", {}), now, 300);
  EXPECT_EQ(e.types.at("process_cpu_seconds_total"), "counter");
  ASSERT_EQ(e.values.at("hearth_build_info").size(), 1u);
  EXPECT_TRUE(e.values.at("hearth_build_info").begin()->first.contains("version"));
}

// vLLM's names, which dashboards and gateways are written against.
TEST(Metrics, EveryNameOfVllmThatHearthHas) {
  Metrics metrics;
  metrics.set_stats([] { return std::vector<ModelStats>{{.model = "m"}}; }, {});
  const Exposition e = parse(metrics.text());
  for (const char* name : {"num_requests_running",
                           "num_requests_waiting",
                           "kv_cache_usage_perc",
                           "cache_config_info",
                           "prompt_tokens_total",
                           "generation_tokens_total",
                           "request_success_total",
                           "num_preemptions_total",
                           "time_to_first_token_seconds",
                           "inter_token_latency_seconds",
                           "request_time_per_output_token_seconds",
                           "e2e_request_latency_seconds",
                           "request_queue_time_seconds",
                           "request_inference_time_seconds",
                           "request_prefill_time_seconds",
                           "request_decode_time_seconds",
                           "request_prompt_tokens",
                           "request_generation_tokens",
                           "request_max_num_generation_tokens",
                           "request_params_n",
                           "request_params_max_tokens",
                           "iteration_tokens_total"})
    EXPECT_TRUE(e.types.contains(std::string("vllm:") + name)) << name;
}

// Steps while others scrape: nothing is lost, and a step costs little (peers' users scrape every 333 ms).
TEST(Metrics, StepsAndScrapesTogether) {
  Metrics metrics;
  metrics.set_stats([] { return std::vector<ModelStats>{{.model = "m"}}; }, {});
  std::vector<float> inter(64, 0.02f);
  constexpr int kSteps = 20000;
  std::atomic<bool> done{false};
  std::thread scraper([&] {
    while (!done) parse(metrics.text());
  });
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kSteps; ++i) metrics.on_step(step("m", {}, inter));
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
  done = true;
  scraper.join();
  const Exposition e = parse(metrics.text());
  EXPECT_EQ(e.at("vllm:inter_token_latency_seconds_count", model("m")), 64.0 * kSteps);
  RecordProperty("us_per_step", std::to_string(spent.count() / kSteps));
  std::printf("%.2f us for a step of 64 sequences\n", spent.count() / kSteps);
}

}  // namespace
}  // namespace hearth
