// SPDX-License-Identifier: Apache-2.0
// What the parts of `hearth bench serve` share: its settings, and what it plays. The main thread.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hearth/cli/commands.h"
#include "hearth/cli/load_options.h"
#include "hearth/client/load_plan.h"
#include "hearth/client/openai.h"
#include "hearth/schedule/slo.h"

namespace hearth {

inline constexpr const char* kCompletionsRoute = "/v1/completions";
inline constexpr const char* kChatRoute = "/v1/chat/completions";

struct BenchSettings {
  CommandContext context;
  std::string base_url = "http://127.0.0.1:8000";
  std::string model, api_key, endpoint = kCompletionsRoute;
  std::string dataset = "random", dataset_path;
  std::string load;  // a file of several models; then there is no dataset
  LoadChanges changes;
  bool hide_targets = false;
  std::optional<double> drain_s;
  std::optional<int64_t> num_prompts, vocab_size;
  std::string request_rate;
  double burstiness = 1;
  int64_t max_concurrency = 0, num_warmups = 0;
  int64_t input_len = 1024, output_len = 128;
  double range_ratio = 0, trace_scale = 1;
  int64_t max_input_len = 0, max_output_len = 0;
  std::optional<double> temperature;
  bool ignore_eos = true, heed_eos = false;
  std::string extra_body;
  double timeout_s = 300;
  std::optional<int64_t> seed;
  std::string metrics = "ttft,tpot,itl,e2el,ttft_sent,delay", percentiles = "50,90,99";
  std::vector<std::string> goodput;
  std::string save_result, save_requests, plot, note;
  bool json = false, quiet = false, strict = false;
};

void add_bench_serve_options(CLI::App& app, BenchSettings& s);

// What is played, and what its numbers are judged by.
struct BenchPlan {
  LoadPlan plan;
  std::vector<std::string> models;  // of the plan's requests
  std::vector<Slo> slos;            // by model; empty: none
  std::optional<Load> load;         // the file it is of
  uint64_t seed = 0;
};

// The server that is measured.
struct BenchServer {
  boost::asio::io_context& context;
  HttpClient& client;
  const std::atomic<bool>& stop;
};

// The ids that random prompts for the model are drawn from.
Result<std::vector<int32_t>> prompt_token_ids(const BenchSettings& s, const BenchServer& server,
                                              const std::string& model);

// --load: errors of the file, of models that the server does not have and of requests that do not fit them, all before
// anything is sent. `rate`: --request-rate.
Result<BenchPlan> plan_load(const BenchSettings& s, std::optional<double> rate, const BenchServer& server);

}  // namespace hearth
