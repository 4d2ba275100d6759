// SPDX-License-Identifier: Apache-2.0
// The options of hearth bench serve. The main thread.
#include "hearth/cli/bench_serve.h"
#include "hearth/cli/options.h"

namespace hearth {
namespace {

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
constexpr Setting<double> kDrain{
    "--drain", "S", 0, 1e6, "seconds", "What has not ended so long after the last request was due counts as failed."};

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
    "--load plays a file of several models, the one that hearth simulate reads, with the very same requests: random "
    "ids\n"
    "to the models of the file's names. Its targets go with the requests and are judged here as the server judges "
    "them,\n"
    "for requests due after the file's warm-up; there is a table for each model and for all.\n\n"
    "Exit code: 0 where any request succeeded (with --strict: all), whatever targets were kept; 8 where none did.\n\n"
    "Examples:\n"
    "  hearth bench serve --random-input-len 128 --random-output-len 64 --num-prompts 200 --request-rate 8\n"
    "  hearth bench serve --dataset trace --dataset-path AzureLLMInferenceTrace_conv.csv --trace-scale 2 \\\n"
    "    --max-input-len 512 --max-output-len 256 --num-prompts 300 --goodput ttft:500 tpot:50\n"
    "  hearth bench serve --load bench/loads/four-models.toml --rate-scale 2 --drain 120 \\\n"
    "    --save-requests requests.jsonl --plot run.svg\n";

void add_target_options(CLI::App& app, BenchSettings& s) {
  static constexpr const char* kEndpoints[] = {kCompletionsRoute, kChatRoute};
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
  add_text(app, "--request-rate", "R",
           "Requests a second on average; inf sends all at once (default: inf, of a load file the file's).",
           s.request_rate)
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
  add_setting(app, kSeed, s.seed, "0, of a load file the file's")->group(kGroup);
  add_setting(app, kTemperature, s.temperature, "the server's")->group(kGroup);
  CLI::Option* const ignore =
      app.add_flag("--ignore-eos", s.ignore_eos,
                   "Outputs go on after the model's end of text, so that all have their length (default: on).")
          ->group(kGroup);
  app.add_flag("--no-ignore-eos", s.heed_eos, "Outputs end at the model's end of text, as for users.")
      ->excludes(ignore)
      ->group(kGroup);
  add_text(app, "--extra-body", "JSON", "An object whose fields every request gets.", s.extra_body)->group(kGroup);
  add_setting(app, kDrain, s.drain_s, "it is waited for")->group(kGroup);
}

void add_load_file_options(CLI::App& app, BenchSettings& s) {
  constexpr const char* kGroup = "Load of several models";
  CLI::Option* const load = add_text(app, "--load", "FILE", "The load (TOML) that hearth simulate plays.", s.load);
  load->group(kGroup);
  for (const char* other : {"--model", "--dataset", "--dataset-path", "--num-prompts", "--burstiness", "--num-warmups",
                            "--random-input-len", "--random-output-len", "--random-range-ratio", "--trace-scale",
                            "--max-input-len", "--max-output-len", "--goodput"})
    load->excludes(app.get_option(other));
  add_load_changes(app, s.changes, kGroup);
  CLI::Option* const hide = app.add_flag("--hide-targets", s.hide_targets,
                                         "The file's targets are not sent, for servers that take no ttft_slo_ms and "
                                         "tpot_slo_ms; they are judged all the same.");
  hide->group(kGroup);
  for (CLI::Option* const option : {app.get_option("--rate-scale"), app.get_option("--seconds"), hide})
    option->needs(load);
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
  add_text(app, "--save-requests", "FILE", "A line of JSON for each request, written when it ends; replaces FILE.",
           s.save_requests)
      ->group(kGroup);
  add_text(app, "--plot", "FILE", "Writes a picture of the run over time (SVG).", s.plot)->group(kGroup);
  app.add_flag("--strict", s.strict, "Any request that failed is an error (default: only where none succeeded).")
      ->group(kGroup);
  add_text(app, "--note", "TEXT", "A word on the circumstances, for that line.", s.note)->group(kGroup);
  app.add_flag("--json", s.json, "Prints that line instead of the table.")->group(kGroup);
  app.add_flag("-q,--quiet", s.quiet, "No progress on standard error.");
}

}  // namespace

void add_bench_serve_options(CLI::App& app, BenchSettings& s) {
  app.footer(kHelp);
  add_target_options(app, s);
  add_load_options(app, s);
  add_report_options(app, s);
  add_load_file_options(app, s);
}

}  // namespace hearth
