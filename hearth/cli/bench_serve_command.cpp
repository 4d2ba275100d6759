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
#include "hearth/cli/commands.h"
#include "hearth/cli/options.h"
#include "hearth/cli/terminal.h"
#include "hearth/client/load.h"
#include "hearth/client/load_plan.h"
#include "hearth/client/load_report.h"
#include "hearth/client/openai.h"
#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr const char* kCompletions = "/v1/completions";
constexpr const char* kChat = "/v1/chat/completions";

constexpr int64_t kMost = int64_t{1} << 31;
constexpr Setting<int64_t> kNumPrompts{"--num-prompts", "N", 1, 100'000'000, "", "Requests to send."};
constexpr Setting<int64_t> kMaxConcurrency{
    "--max-concurrency",
    "N",
    0,
    1'000'000,
    "",
    "Requests in flight at most; others wait, and their wait counts as latency. 0: no limit."};
constexpr Setting<int64_t> kNumWarmups{
    "--num-warmups", "N", 0, 1'000'000, "", "Requests sent one after the other before the test; not counted."};
constexpr Setting<double> kBurstiness{
    "--burstiness",
    "X",
    1e-3,
    1e6,
    "",
    "Shape of the gaps between requests: 1 is a Poisson process, below 1 burstier, above 1 more even."};
constexpr Setting<int64_t> kInputLen{"--random-input-len", "N", 1, kMost, "tokens", "Prompt of a random request."};
constexpr Setting<int64_t> kOutputLen{"--random-output-len",
                                      "N",
                                      1,
                                      kMost,
                                      "tokens",
                                      "Output of a random request, and of prompts "
                                      "that say no max_tokens."};
constexpr Setting<double> kRangeRatio{
    "--random-range-ratio", "R", 0, 0.999999, "", "Random lengths are uniform in [N (1 - R), N (1 + R)]."};
constexpr Setting<double> kTraceScale{
    "--trace-scale", "X", 1e-9, 1e9, "", "Times of a trace are multiplied by X: 0.1 is ten times the load."};
constexpr Setting<int64_t> kMaxInputLen{
    "--max-input-len", "N", 0, kMost, "tokens", "Longer prompts of a trace are cut to N; 0: none is."};
constexpr Setting<int64_t> kMaxOutputLen{
    "--max-output-len", "N", 0, kMost, "tokens", "Longer outputs of a trace or of prompts are cut to N; 0: none is."};
constexpr Setting<int64_t> kVocabSize{
    "--vocab-size", "N", 1, kMost, "tokens", "Random prompts are ids below N, for servers without /tokenize."};
constexpr Setting<double> kTemperature{"--temperature", "T", 0, 1000, "", "Temperature of every request."};
constexpr Setting<double> kTimeout{"--timeout", "S",       0.001,
                                   1e6,         "seconds", "A request fails if its server sends nothing for so long."};
constexpr Setting<int64_t> kSeed{
    "--seed", "N", 0, (int64_t{1} << 53) - 1, "", "The same seed draws the same times, lengths and prompts."};
constexpr Setting<double> kRate{"--request-rate", "R", 1e-9, 1e9, "requests/s", ""};

constexpr const char* kHelp =
    "Requests leave at times that are drawn before the test (--request-rate) or recorded (--dataset trace), whatever\n"
    "the server does: an open loop, as users are. Latencies count from when a request was due, so that a server that\n"
    "makes requests wait cannot hide it; ttft_sent and e2el_sent count from when it was sent.\n\n"
    "Metrics: ttft time to first token, tpot (last - first token) / (tokens - 1), itl time between two events with\n"
    "tokens, e2el time to the whole answer, ttft_sent, e2el_sent, delay (sent later than due). All in milliseconds.\n\n"
    "Datasets: random token ids (for chat: random words, one a token or more); trace, a CSV with the columns\n"
    "TIMESTAMP,ContextTokens,GeneratedTokens (Azure's LLM inference traces) or num_prefill_tokens,num_decode_tokens\n"
    "(lengths alone) with random ids; jsonl, lines {\"prompt\": TEXT or [ids]} or {\"messages\": [...]}, each with\n"
    "\"max_tokens\" or without.\n\n"
    "Examples:\n"
    "  hearth bench serve --random-input-len 128 --random-output-len 64 --num-prompts 200 --request-rate 8\n"
    "  hearth bench serve --dataset trace --dataset-path AzureLLMInferenceTrace_conv.csv --trace-scale 2 \\\n"
    "    --max-input-len 512 --max-output-len 256 --num-prompts 300 --goodput ttft:500 tpot:50\n";

struct BenchSettings {
  CommandContext context;
  std::string base_url = "http://127.0.0.1:8000";
  std::string model, api_key, endpoint = kCompletions;
  std::string dataset = "random", dataset_path;
  std::optional<int64_t> num_prompts, vocab_size;
  std::string request_rate = "inf";
  double burstiness = 1;
  int64_t max_concurrency = 0, num_warmups = 0;
  int64_t input_len = 1024, output_len = 128;
  double range_ratio = 0, trace_scale = 1;
  int64_t max_input_len = 0, max_output_len = 0;
  std::optional<double> temperature;
  bool ignore_eos = true, heed_eos = false;
  std::string extra_body;
  double timeout_s = 300;
  int64_t seed = 0;
  std::string metrics = "ttft,tpot,itl,e2el,ttft_sent,delay", percentiles = "50,90,99";
  std::vector<std::string> goodput;
  std::string save_result, note;
  bool json = false, quiet = false;
};

// What the texts of the settings say.
struct Wanted {
  HttpUrl url;
  double rate = 0;
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

Result<Wanted> read_settings(const BenchSettings& s) {
  Wanted wanted;
  HEARTH_TRY_ASSIGN(wanted.url, parse_http_url(s.base_url).with_context("--base-url"));
  HEARTH_TRY_ASSIGN(wanted.rate, parse_rate(s.request_rate));
  HEARTH_TRY_ASSIGN(wanted.percentiles, parse_percentiles(s.percentiles).with_context("--metric-percentiles"));
  HEARTH_TRY_ASSIGN(wanted.metrics, parse_metrics(s.metrics).with_context("--percentile-metrics"));
  HEARTH_TRY_ASSIGN(wanted.goals, parse_goals(s.goodput).with_context("--goodput"));
  if ((s.dataset == "random") != s.dataset_path.empty())
    return invalid_argument("--dataset {} {} --dataset-path", s.dataset, s.dataset == "random" ? "takes no" : "needs");
  if (s.save_result.empty()) return wanted;
  // Tried before the work, not after it.
  std::FILE* const file = std::fopen(s.save_result.c_str(), "ab");
  if (file == nullptr)
    return unavailable("--save-result: cannot open {} for writing: {}", s.save_result, std::strerror(errno));
  std::fclose(file);
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
Result<std::vector<int32_t>> usual_token_ids(boost::asio::io_context& context, HttpClient& client,
                                             const std::string& model, const std::atomic<bool>& stop) {
  std::set<int32_t> ids;
  for (char first = 'a'; first <= 'z'; ++first) {
    std::string text;
    for (char second = 'a'; second <= 'z'; ++second) text += fmt::format(" {0}{1} {0}{1}e", first, second);
    HEARTH_TRY_ASSIGN(const auto some, tokenize(context, client, model, text, stop));
    ids.insert(some.begin(), some.end());
  }
  if (ids.empty()) return corrupt("POST /tokenize: no tokens");
  return std::vector<int32_t>(ids.begin(), ids.end());
}

Result<std::vector<int32_t>> token_ids(const BenchSettings& s, boost::asio::io_context& context, HttpClient& client,
                                       const std::string& model, const std::atomic<bool>& stop) {
  if (s.endpoint != kCompletions || s.dataset == "jsonl") return std::vector<int32_t>();
  if (s.vocab_size) {
    std::vector<int32_t> ids(static_cast<size_t>(*s.vocab_size));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    return ids;
  }
  auto ids = usual_token_ids(context, client, model, stop);
  if (ids || ids.error().code == ErrorCode::kCancelled) return ids;
  Error error = std::move(ids).error();
  error.message += "; --vocab-size says the ids for a server without /tokenize";
  return error;
}

// The model of the settings, or the server's only one.
Result<ModelCard> find_model_card(const BenchSettings& s, boost::asio::io_context& context, HttpClient& client,
                                  const std::atomic<bool>& stop) {
  auto models = list_models(context, client, stop);
  // Some servers have no such list.
  if (!models && models.error().code == ErrorCode::kNotFound && !s.model.empty())
    return ModelCard{.id = s.model, .max_model_len = std::nullopt};
  if (!models) return std::move(models).error();
  return choose_model(*models, s.model);
}

Result<LoadPlan> make_plan(const BenchSettings& s, const Wanted& wanted, const ModelCard& card,
                           std::vector<int32_t> ids) {
  LoadPlanSettings plan;
  plan.dataset = s.dataset == "random" ? Dataset::kRandom : s.dataset == "trace" ? Dataset::kTrace : Dataset::kPrompts;
  if (!s.dataset_path.empty()) {
    HEARTH_TRY_ASSIGN(plan.file_text, read_file(s.dataset_path));
  }
  plan.num_prompts = s.num_prompts;
  plan.request_rate = wanted.rate;
  plan.burstiness = s.burstiness;
  plan.seed = static_cast<uint64_t>(s.seed);
  plan.input_len = s.input_len;
  plan.output_len = s.output_len;
  plan.range_ratio = s.range_ratio;
  plan.trace_scale = s.trace_scale;
  plan.max_input_len = s.max_input_len;
  plan.max_output_len = s.max_output_len;
  plan.max_context = card.max_model_len.value_or(0);
  plan.token_ids = std::move(ids);
  plan.chat = s.endpoint == kChat;
  plan.model = card.id;
  plan.ignore_eos = s.ignore_eos && !s.heed_eos;
  plan.temperature = s.temperature;
  plan.extra_body = s.extra_body;
  auto made = make_load_plan(std::move(plan));
  return s.dataset_path.empty() ? std::move(made) : std::move(made).with_context(s.dataset_path);
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

nlohmann::json result_object(const BenchSettings& s, const Wanted& wanted, const ModelCard& card, const LoadPlan& plan,
                             const LoadSummary& summary) {
  nlohmann::json line =
      result_line("serve", cpu_device(ThreadPool::hardware_threads()), command_without_key(s.context.args));
  line["version"] = build_info().version;
  line["base_url"] = "http://" + wanted.url.authority() + wanted.url.path;
  line["endpoint"] = s.endpoint;
  line["model"] = card.id;
  line["dataset"] = s.dataset;
  if (!s.dataset_path.empty()) line["dataset_file"] = std::filesystem::path(s.dataset_path).filename().string();
  if (s.dataset != "jsonl") {
    line["max_input_len"] = s.max_input_len;
  }
  if (s.dataset == "random") {
    line["random_input_len"] = s.input_len;
    line["random_range_ratio"] = s.range_ratio;
  }
  if (s.dataset != "trace") line["random_output_len"] = s.output_len;
  if (s.dataset == "trace") line["trace_scale"] = s.trace_scale;
  line["max_output_len"] = s.max_output_len;
  line["request_rate"] = plan.recorded_times ? "trace" : s.request_rate;
  line["burstiness"] = s.burstiness;
  line["max_concurrency"] = s.max_concurrency;
  line["num_warmups"] = s.num_warmups;
  line["ignore_eos"] = s.ignore_eos && !s.heed_eos;
  line["temperature"] = s.temperature ? nlohmann::json(*s.temperature) : nlohmann::json();
  line["extra_body"] = s.extra_body;
  line["goodput"] = s.goodput;
  line["seed"] = s.seed;
  if (!s.note.empty()) line["note"] = s.note;
  line.update(report_json(summary));
  return line;
}

LoadResult run_plan(const BenchSettings& s, boost::asio::io_context& context, HttpClient& client, const LoadPlan& plan,
                    const std::atomic<bool>& stop) {
  LoadSettings load;
  load.target = client.url().target(s.endpoint);
  load.make_body = plan.make_body;
  if (s.num_warmups > 0) {
    LoadSettings warm = load;
    warm.max_concurrency = 1;
    const std::vector<PlannedRequest> requests(static_cast<size_t>(s.num_warmups), PlannedRequest{});
    warm.make_body = [&](size_t index) { return plan.make_body(index % plan.requests.size()); };
    (void)run_load(context, client, requests, warm, stop);  // what fails here fails in the test, too, and is told then
  }
  load.max_concurrency = s.max_concurrency;
  std::optional<Progress> progress;
  if (!s.quiet) progress.emplace("bench", std::ssize(plan.requests), Progress::Unit::kItems);
  load.on_progress = [&](int64_t ended) {
    if (progress) progress->update(ended);
  };
  LoadResult result = run_load(context, client, plan.requests, load, stop);
  if (progress) progress->finish();
  return result;
}

Result<int> run_bench_serve(const BenchSettings& s) {
  HEARTH_TRY_ASSIGN(const Wanted wanted, read_settings(s));
  raise_descriptor_limit();
  const InterruptGuard interrupt;
  const std::atomic<bool>& stop = interrupt.flag();
  boost::asio::io_context context(1);
  const HttpClientOptions options = {.headers = authorization(s.api_key),
                                     .idle_timeout_ms = static_cast<int64_t>(std::ceil(s.timeout_s * 1e3))};
  HEARTH_TRY_ASSIGN(const std::unique_ptr<HttpClient> client, HttpClient::create(context, wanted.url, options));
  HEARTH_TRY_ASSIGN(const ModelCard card, find_model_card(s, context, *client, stop));
  HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, token_ids(s, context, *client, card.id, stop));
  HEARTH_TRY_ASSIGN(const LoadPlan plan, make_plan(s, wanted, card, std::move(ids)));
  if (!s.quiet)
    write_stderr(fmt::format("({} requests for {} at {}{}, over {:.1f} s)", plan.requests.size(), card.id,
                             wanted.url.authority(), s.endpoint, plan.requests.back().arrival_s));

  const LoadResult result = run_plan(s, context, *client, plan, stop);
  const LoadSummary summary = summarize(result, wanted.percentiles, wanted.goals);
  const nlohmann::json line = result_object(s, wanted, card, plan, summary);
  // The table may hold what the server said.
  HEARTH_TRY(write_stdout(s.json ? line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                                 : escape_controls(report_table(summary, wanted.metrics))));
  if (!s.save_result.empty()) HEARTH_TRY(append_result(s.save_result, line));
  if (summary.interrupted) return kInterruptedExit;
  if (summary.done == 0) return unavailable("none of {} requests succeeded", summary.planned);
  return 0;
}

void add_target_options(CLI::App& app, BenchSettings& s) {
  static constexpr const char* kEndpoints[] = {kCompletions, kChat};
  constexpr const char* kGroup = "Server";
  add_text(app, "--base-url", "URL", "http://HOST:PORT of the server (default: http://127.0.0.1:8000).", s.base_url)
      ->group(kGroup);
  add_text(app, "--model", "NAME", "The model (default: the server's only one).", s.model)->group(kGroup);
  add_choice(app, "--endpoint", kEndpoints, "The route.", s.endpoint)->group(kGroup);
  add_text(app, "--api-key", "KEY", "Sent as Authorization: Bearer KEY (default: the variable OPENAI_API_KEY).",
           s.api_key)
      ->envname("OPENAI_API_KEY")
      ->group(kGroup);
  add_setting(app, kTimeout, s.timeout_s)->group(kGroup);
}

void add_load_options(CLI::App& app, BenchSettings& s) {
  static constexpr const char* kDatasets[] = {"random", "trace", "jsonl"};
  constexpr const char* kGroup = "Load";
  add_choice(app, "--dataset", kDatasets, "Where requests come from.", s.dataset)->group(kGroup);
  add_text(app, "--dataset-path", "FILE", "The trace or the prompts.", s.dataset_path)->group(kGroup);
  add_setting(app, kNumPrompts, s.num_prompts, "1000; all of a trace with times; at most as many as a file has")
      ->group(kGroup);
  add_text(app, kRate.flag, "R", "Requests a second on average; inf sends all at once (default: inf).", s.request_rate)
      ->group(kGroup);
  add_setting(app, kBurstiness, s.burstiness)->group(kGroup);
  add_setting(app, kMaxConcurrency, s.max_concurrency)->group(kGroup);
  add_setting(app, kNumWarmups, s.num_warmups)->group(kGroup);
  add_setting(app, kInputLen, s.input_len)->group(kGroup);
  add_setting(app, kOutputLen, s.output_len)->group(kGroup);
  add_setting(app, kRangeRatio, s.range_ratio)->group(kGroup);
  add_setting(app, kTraceScale, s.trace_scale)->group(kGroup);
  add_setting(app, kMaxInputLen, s.max_input_len)->group(kGroup);
  add_setting(app, kMaxOutputLen, s.max_output_len)->group(kGroup);
  add_setting(app, kVocabSize, s.vocab_size, "the server's /tokenize tells")->group(kGroup);
  add_setting(app, kSeed, s.seed)->group(kGroup);
  add_setting(app, kTemperature, s.temperature, "the server's")->group(kGroup);
  CLI::Option* const ignore =
      app.add_flag("--ignore-eos", s.ignore_eos,
                   "Outputs go on after the model's end of text, so that all have their length (default: on).")
          ->group(kGroup);
  app.add_flag("--no-ignore-eos", s.heed_eos, "Outputs end at the model's end of text, as for users.")
      ->excludes(ignore)
      ->group(kGroup);
  add_text(app, "--extra-body", "JSON", "An object whose fields every request gets.", s.extra_body)->group(kGroup);
}

void add_report_options(CLI::App& app, BenchSettings& s) {
  constexpr const char* kGroup = "Report";
  add_text(app, "--percentile-metrics", "NAMES", "Metrics of the table (default: ttft,tpot,itl,e2el,ttft_sent,delay).",
           s.metrics)
      ->group(kGroup);
  add_text(app, "--metric-percentiles", "LIST", "Percentiles (default: 50,90,99).", s.percentiles)->group(kGroup);
  app.add_option("--goodput", s.goodput, "Goals in milliseconds; requests that keep all of them are counted apart.")
      ->type_name("ttft:MS tpot:MS e2el:MS")
      ->expected(1, 3)
      ->group(kGroup);
  add_text(app, "--save-result", "FILE",
           "Appends the numbers to FILE as a line of JSON with all settings, date, commit, "
           "device and command.",
           s.save_result)
      ->group(kGroup);
  add_text(app, "--note", "TEXT", "A word on the circumstances, for that line.", s.note)->group(kGroup);
  app.add_flag("--json", s.json, "Prints that line instead of the table.")->group(kGroup);
  app.add_flag("-q,--quiet", s.quiet, "No progress on standard error.");
}

}  // namespace

std::vector<Command> add_bench_commands(CLI::App& app, const CommandContext& context) {
  CLI::App* bench = app.add_subcommand("bench", "Measures ops, a model, or a server under load.");
  bench->require_subcommand(0, 1)->fallthrough();
  const auto s = std::make_shared<BenchSettings>();
  s->context = context;
  CLI::App* serve = bench->add_subcommand("serve", "Latency and throughput of a server with OpenAI's API.");
  serve->fallthrough()->footer(kHelp);
  add_target_options(*serve, *s);
  add_load_options(*serve, *s);
  add_report_options(*serve, *s);
  return {{serve, [s] { return run_bench_serve(*s); }},
          add_bench_model_command(*bench, context),
          add_bench_load_command(*bench, context),
          add_bench_ops_command(*bench, context)};
}

}  // namespace hearth
