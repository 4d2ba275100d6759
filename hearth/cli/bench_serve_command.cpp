// SPDX-License-Identifier: Apache-2.0
// hearth bench serve: load against a server with OpenAI's API, this one or another, and the latencies and throughput
// that its clients see. The main thread.
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "hearth/base/progress.h"
#include "hearth/base/thread_pool.h"
#include "hearth/base/version.h"
#include "hearth/checkpoint/quote.h"
#include "hearth/cli/bench_serve.h"
#include "hearth/cli/options.h"
#include "hearth/cli/terminal.h"
#include "hearth/client/load.h"
#include "hearth/client/mixed_report.h"
#include "hearth/client/request_log.h"
#include "hearth/client/run_picture.h"
#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr Setting<double> kRate{"--request-rate", "R", 1e-9, 1e9, "requests/s", ""};

// What the texts of the settings say.
struct Wanted {
  HttpUrl url;
  std::optional<double> rate;
  std::vector<double> percentiles;
  std::vector<std::string> metrics;
  Goals goals;
};

Result<double> parse_rate(const std::string& text) {
  if (text == "inf") return std::numeric_limits<double>::infinity();
  auto rate = parse_number(text, kRate);
  if (!rate) return invalid_argument("{}: {}, or inf for all at once", kRate.flag, rate.error().message);
  return rate;
}

Status try_output(const char* flag, const std::string& path) {
  if (path.empty()) return {};
  std::FILE* const file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) return unavailable("{}: cannot open {} for writing: {}", flag, path, std::strerror(errno));
  std::fclose(file);
  return {};
}

Result<Wanted> read_settings(const BenchSettings& s) {
  Wanted wanted;
  HEARTH_TRY_ASSIGN(wanted.url, parse_http_url(s.base_url).with_context("--base-url"));
  if (!s.request_rate.empty()) {
    HEARTH_TRY_ASSIGN(wanted.rate, parse_rate(s.request_rate));
  }
  if (!s.load.empty() && wanted.rate && std::isinf(*wanted.rate))
    return invalid_argument("{} inf: a load's requests have their times; wanted a number", kRate.flag);
  if (!s.load.empty() && s.endpoint != kCompletionsRoute)
    return invalid_argument("--load takes {} alone, where prompts have their length to the token; found {}",
                            kCompletionsRoute, s.endpoint);
  HEARTH_TRY_ASSIGN(wanted.percentiles, parse_percentiles(s.percentiles).with_context("--metric-percentiles"));
  HEARTH_TRY_ASSIGN(wanted.metrics, parse_metrics(s.metrics).with_context("--percentile-metrics"));
  HEARTH_TRY_ASSIGN(wanted.goals, parse_goals(s.goodput).with_context("--goodput"));
  if ((s.dataset == "random") != s.dataset_path.empty())
    return invalid_argument("--dataset {} {} --dataset-path", s.dataset, s.dataset == "random" ? "takes no" : "needs");
  // Tried before the work, not after it.
  HEARTH_TRY(try_output("--save-result", s.save_result));
  HEARTH_TRY(try_output("--plot", s.plot));
  return wanted;
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("--dataset-path: cannot open {}: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return unavailable("--dataset-path: cannot read {}", path);
  return std::move(text).str();
}

// A stream is a descriptor; the soft limit of many systems is 1024.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);  // where it fails, connections beyond the limit fail and say so
}

// Ordinary ids of the model's vocabulary: those that its tokenizer gives for pairs and triples of letters. A special
// token, which could end or change what the model does, is not among them.
Result<std::vector<int32_t>> usual_token_ids(const BenchServer& server, const std::string& model) {
  std::set<int32_t> ids;
  for (char first = 'a'; first <= 'z'; ++first) {
    std::string text;
    for (char second = 'a'; second <= 'z'; ++second) text += fmt::format(" {0}{1} {0}{1}e", first, second);
    HEARTH_TRY_ASSIGN(const auto some, tokenize(server.context, server.client, model, text, server.stop));
    ids.insert(some.begin(), some.end());
  }
  if (ids.empty()) return corrupt("POST /tokenize: no tokens");
  return std::vector<int32_t>(ids.begin(), ids.end());
}

// The model of the settings, or the server's only one.
Result<ModelCard> find_model_card(const BenchSettings& s, const BenchServer& server) {
  auto models = list_models(server.context, server.client, server.stop);
  // Some servers have no such list.
  if (!models && models.error().code == ErrorCode::kNotFound && !s.model.empty())
    return ModelCard{.id = s.model, .max_model_len = std::nullopt};
  if (!models) return std::move(models).error();
  return choose_model(*models, s.model);
}

// One model's requests, by the settings or their dataset.
Result<BenchPlan> plan_dataset(const BenchSettings& s, const Wanted& wanted, const BenchServer& server) {
  HEARTH_TRY_ASSIGN(const ModelCard card, find_model_card(s, server));
  LoadPlanSettings plan;
  if (s.endpoint == kCompletionsRoute && s.dataset != "jsonl") {
    HEARTH_TRY_ASSIGN(plan.token_ids, prompt_token_ids(s, server, card.id));
  }
  plan.dataset = s.dataset == "random" ? Dataset::kRandom : s.dataset == "trace" ? Dataset::kTrace : Dataset::kPrompts;
  if (!s.dataset_path.empty()) {
    HEARTH_TRY_ASSIGN(plan.file_text, read_file(s.dataset_path));
  }
  plan.num_prompts = s.num_prompts;
  plan.request_rate = wanted.rate.value_or(std::numeric_limits<double>::infinity());
  plan.burstiness = s.burstiness;
  plan.seed = static_cast<uint64_t>(s.seed.value_or(0));
  plan.input_len = s.input_len;
  plan.output_len = s.output_len;
  plan.range_ratio = s.range_ratio;
  plan.trace_scale = s.trace_scale;
  plan.max_input_len = s.max_input_len;
  plan.max_output_len = s.max_output_len;
  plan.max_context = card.max_model_len.value_or(0);
  plan.chat = s.endpoint == kChatRoute;
  plan.model = card.id;
  plan.ignore_eos = s.ignore_eos && !s.heed_eos;
  plan.temperature = s.temperature;
  plan.extra_body = s.extra_body;
  BenchPlan bench;
  bench.models = {card.id};
  bench.seed = plan.seed;
  auto made = make_load_plan(std::move(plan));
  if (!s.dataset_path.empty()) made = std::move(made).with_context(s.dataset_path);
  HEARTH_TRY_ASSIGN(bench.plan, std::move(made));
  return bench;
}

// The words of the command, the key left out.
std::string command_without_key(std::span<const char* const> args) {
  constexpr std::string_view kFlag = "--api-key";
  std::vector<std::string> words(args.begin(), args.end());
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].starts_with(std::string(kFlag) + "=")) words[i] = std::string(kFlag) + "=***";
    if (i > 0 && words[i - 1] == kFlag) words[i] = "***";
  }
  std::vector<const char*> pointers;
  for (const std::string& word : words) pointers.push_back(word.c_str());
  return command_line(pointers);
}

void add_dataset(const BenchSettings& s, const LoadPlan& plan, nlohmann::json& line) {
  line["dataset"] = s.dataset;
  if (!s.dataset_path.empty()) line["dataset_file"] = std::filesystem::path(s.dataset_path).filename().string();
  if (s.dataset != "jsonl") line["max_input_len"] = s.max_input_len;
  if (s.dataset == "random") {
    line["random_input_len"] = s.input_len;
    line["random_range_ratio"] = s.range_ratio;
  }
  if (s.dataset != "trace") line["random_output_len"] = s.output_len;
  if (s.dataset == "trace") line["trace_scale"] = s.trace_scale;
  line["max_output_len"] = s.max_output_len;
  line["request_rate"] = plan.recorded_times ? "trace" : s.request_rate.empty() ? "inf" : s.request_rate;
  line["burstiness"] = s.burstiness;
  line["goodput"] = s.goodput;
}

void add_load(const BenchSettings& s, const Load& load, nlohmann::json& line) {
  line["dataset"] = "load";
  line["load"] = {{"file", std::filesystem::path(s.load).filename().string()},
                  {"rate", load.rate},
                  {"rate_scale", load.rate_scale},
                  {"seconds", load.seconds},
                  {"warmup_seconds", load.warmup_seconds},
                  {"targets_sent", !s.hide_targets}};
}

nlohmann::json result_object(const BenchSettings& s, const Wanted& wanted, const BenchPlan& bench,
                             const nlohmann::json& numbers) {
  nlohmann::json line =
      result_line("serve", cpu_device(ThreadPool::hardware_threads()), command_without_key(s.context.args));
  line["version"] = build_info().version;
  line["base_url"] = "http://" + wanted.url.authority() + wanted.url.path;
  line["endpoint"] = s.endpoint;
  line["model"] = fmt::format("{}", fmt::join(bench.models, ","));
  if (bench.load) {
    add_load(s, *bench.load, line);
  } else {
    add_dataset(s, bench.plan, line);
  }
  line["max_concurrency"] = s.max_concurrency;
  line["num_warmups"] = s.num_warmups;
  line["drain_s"] = s.drain_s ? nlohmann::json(*s.drain_s) : nlohmann::json();
  line["ignore_eos"] = s.ignore_eos && !s.heed_eos;
  line["temperature"] = s.temperature ? nlohmann::json(*s.temperature) : nlohmann::json();
  line["extra_body"] = s.extra_body;
  line["seed"] = bench.seed;
  if (!s.note.empty()) line["note"] = s.note;
  line.update(numbers);
  return line;
}

RequestLogTerms log_terms(const BenchSettings& s, const BenchPlan& bench) {
  return {.load = std::filesystem::path(s.load).filename().string(),
          .seed = bench.seed,
          .models = bench.models,
          .slos = bench.slos,
          .warmup_s = bench.load ? bench.load->warmup_seconds : 0};
}

Result<LoadResult> run_plan(const BenchSettings& s, const BenchServer& server, const BenchPlan& bench) {
  const LoadPlan& plan = bench.plan;
  std::unique_ptr<RequestLog> log;
  if (!s.save_requests.empty()) {
    HEARTH_TRY_ASSIGN(log, RequestLog::create(s.save_requests).with_context("--save-requests"));
  }
  LoadSettings load;
  load.target = server.client.url().target(s.endpoint);
  load.make_body = plan.make_body;
  if (s.num_warmups > 0) {
    LoadSettings warm = load;
    warm.max_concurrency = 1;
    const std::vector<PlannedRequest> requests(static_cast<size_t>(s.num_warmups), PlannedRequest{});
    warm.make_body = [&](size_t index) { return plan.make_body(index % plan.requests.size()); };
    // What fails here fails in the test, too, and is told then.
    (void)run_load(server.context, server.client, requests, warm, server.stop);
  }
  load.max_concurrency = s.max_concurrency;
  load.drain_s = s.drain_s;
  std::optional<Progress> progress;
  if (!s.quiet) progress.emplace("bench", std::ssize(plan.requests), Progress::Unit::kItems);
  load.on_progress = [&](int64_t ended) {
    if (progress) progress->update(ended);
  };
  const RequestLogTerms terms = log_terms(s, bench);
  const auto tell = [&](size_t index, const RequestRecord& record) {
    if (log) log->write(request_line(terms, index, plan.requests[index], record));
  };
  load.on_ended = tell;
  LoadResult result = run_load(server.context, server.client, plan.requests, load, server.stop);
  if (progress) progress->finish();
  for (size_t i = 0; i < result.records.size(); ++i)
    if (result.records[i].outcome == RequestRecord::Outcome::kNotSent) tell(i, result.records[i]);
  if (log) HEARTH_TRY(Status(log->status()).with_context("--save-requests"));
  return result;
}

// What a reader of the numbers has to know beside them.
void warn(const BenchSettings& s, const MixedReport& report) {
  constexpr double kLateMs = 50;
  const LoadSummary& all = report.all;
  if (all.failed > 0) write_stderr(fmt::format("hearth: {} of {} requests failed", all.failed, all.planned));
  for (size_t m = 0; m < report.models.size(); ++m) {
    const LoadSummary& model = report.models[m];
    if (model.failed > 0 && model.done == 0)
      write_stderr(fmt::format("hearth: none of {} requests for '{}' succeeded", model.planned, report.names[m]));
  }
  const double late_ms = all.metric("delay").max;
  if (s.max_concurrency == 0 && late_ms > kLateMs)
    write_stderr(
        fmt::format("hearth: requests were sent up to {:.0f} ms later than due: this machine was too busy, and "
                    "the latencies have that in them",
                    late_ms));
}

Status write_plot(const BenchSettings& s, const BenchPlan& bench, const LoadResult& result) {
  std::ofstream file(s.plot);
  file << run_svg(result, bench.models, bench.slos,
                  fmt::format("{} at {}", s.load.empty() ? bench.models.front() : s.load, s.base_url));
  if (!file.flush()) return unavailable("--plot: {} cannot be written", s.plot);
  return {};
}

Result<int> run_bench_serve(const BenchSettings& s) {
  HEARTH_TRY_ASSIGN(const Wanted wanted, read_settings(s));
  raise_descriptor_limit();
  const InterruptGuard interrupt;
  boost::asio::io_context context(1);
  const HttpClientOptions options = {.headers = authorization(s.api_key),
                                     .idle_timeout_ms = static_cast<int64_t>(std::ceil(s.timeout_s * 1e3))};
  HEARTH_TRY_ASSIGN(const std::unique_ptr<HttpClient> client, HttpClient::create(context, wanted.url, options));
  const BenchServer server{context, *client, interrupt.flag()};
  HEARTH_TRY_ASSIGN(const BenchPlan bench,
                    s.load.empty() ? plan_dataset(s, wanted, server) : plan_load(s, wanted.rate, server));
  if (!s.quiet)
    write_stderr(fmt::format("({} requests for {} at {}{}, over {:.1f} s)", bench.plan.requests.size(),
                             fmt::join(bench.models, ", "), wanted.url.authority(), s.endpoint,
                             bench.plan.requests.back().arrival_s));

  HEARTH_TRY_ASSIGN(const LoadResult result, run_plan(s, server, bench));
  SummaryScope scope;
  if (bench.load) scope = {.from_s = bench.load->warmup_seconds, .arrivals_s = bench.load->seconds, .slos = bench.slos};
  const MixedReport report = summarize_models(result, bench.models, wanted.percentiles, wanted.goals, scope);
  const nlohmann::json line =
      result_object(s, wanted, bench, bench.load ? mixed_json(report) : report_json(report.all));
  const std::string table = bench.load ? mixed_table(report, wanted.metrics) : report_table(report.all, wanted.metrics);
  // The table may hold what the server said.
  HEARTH_TRY(write_stdout(s.json ? line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                                 : escape_controls(table)));
  if (!s.save_result.empty()) HEARTH_TRY(append_result(s.save_result, line));
  if (!s.plot.empty()) HEARTH_TRY(write_plot(s, bench, result));
  warn(s, report);
  const LoadSummary& all = report.all;
  if (all.interrupted) return kInterruptedExit;
  if (all.done == 0) return unavailable("none of {} requests succeeded", all.planned);
  if (s.strict && all.failed > 0) return unavailable("--strict: {} of {} requests failed", all.failed, all.planned);
  return 0;
}

}  // namespace

Result<std::vector<int32_t>> prompt_token_ids(const BenchSettings& s, const BenchServer& server,
                                              const std::string& model) {
  if (s.vocab_size) {
    std::vector<int32_t> ids(static_cast<size_t>(*s.vocab_size));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    return ids;
  }
  auto ids = usual_token_ids(server, model);
  if (ids || ids.error().code == ErrorCode::kCancelled) return ids;
  Error error = std::move(ids).error();
  error.message += "; --vocab-size says the ids for a server without /tokenize";
  return error;
}

std::vector<Command> add_bench_commands(CLI::App& app, const CommandContext& context) {
  CLI::App* bench = app.add_subcommand("bench", "Measures ops, a model, or a server under load.");
  bench->require_subcommand(0, 1)->fallthrough();
  const auto s = std::make_shared<BenchSettings>();
  s->context = context;
  CLI::App* serve = bench->add_subcommand("serve", "Latency and throughput of a server with OpenAI's API.");
  serve->fallthrough();
  add_bench_serve_options(*serve, *s);
  return {{serve, [s] { return run_bench_serve(*s); }},
          add_bench_model_command(*bench, context),
          add_bench_load_command(*bench, context),
          add_bench_ops_command(*bench, context)};
}

}  // namespace hearth
