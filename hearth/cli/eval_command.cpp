// SPDX-License-Identifier: Apache-2.0
// hearth eval ppl | lambada | kl | --report: how good a model is, in numbers that can be compared and kept.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "hearth/base/clock.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/eval_report.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/kl.h"
#include "hearth/eval/lambada.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/results.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

constexpr const char* kTextRule =
    "The rule: a newline, a NUL and a newline separate the documents of a file. With separators, each document is\n"
    "BOS + text + EOS, one after the other; without, the file is one BOS + text. Window j feeds ids[ctx j .. ctx j + "
    "ctx)\n"
    "to an empty context and scores the next id at every position; a rest shorter than a window is left out.\n";

constexpr const char* kReportExamples =
    "Examples:\n"
    "  hearth eval --report rtn=out/rtn out/fireq fireq-kv4=out/fireq@kv=int4-fireq --reference models/fable-13m \\\n"
    "      --baseline rtn --text heldout_books.txt --lambada lambada_openai.jsonl --lists bench/eval/*.json \\\n"
    "      --state report.jsonl --markdown report.md\n";

struct EvalSettings {
  CommandContext context;
  ModelSettings model;
  std::string against;
  std::string against_dtype = "f32";
  std::string against_device = "auto";
  std::string file;  // --text or --data
  std::string windows;
  std::optional<int64_t> ctx;
  int64_t limit = 0;
  std::string items;  // file for the score of each item
  std::string results;
  bool json = false;
};

// What all evaluations share: the threads, the model, Ctrl-C, the time.
struct EvalRun {
  const EvalSettings& settings;
  std::unique_ptr<ThreadPool> pool;
  std::shared_ptr<const ServedModel> model;
  InterruptGuard interrupt;
  SteadyClock clock;

  std::string text_name() const { return std::filesystem::path(settings.file).stem().string(); }
};

Result<std::vector<int64_t>> chosen_windows(const EvalSettings& s, int64_t count) {
  std::string list = s.windows;
  if (!list.empty() && list[0] == '@') {
    auto text = read_text_file(list.substr(1));
    HEARTH_TRY_ASSIGN(list, std::move(text).with_context("--windows"));
    std::replace_if(
        list.begin(), list.end(), [](char c) { return c == '\n' || c == '\r' || c == ' ' || c == '\t'; }, ',');
    list.erase(std::unique(list.begin(), list.end(), [](char a, char b) { return a == ',' && b == ','; }), list.end());
    if (!list.empty() && list.back() == ',') list.pop_back();
    if (!list.empty() && list.front() == ',') list.erase(0, 1);
    if (list.empty()) return invalid_argument("--windows: {} lists no windows", s.windows.substr(1));
  }
  HEARTH_TRY_ASSIGN(std::vector<int64_t> windows, parse_windows(list, count).with_context("--windows"));
  if (s.limit > 0 && std::ssize(windows) > s.limit) windows.resize(static_cast<size_t>(s.limit));
  return windows;
}

// A line of results with everything but the numbers.
nlohmann::json quality_line(const EvalRun& run) {
  const Model& model = *run.model->model;
  nlohmann::json line =
      result_line("eval.quality", device_of(model.ops(), run.pool->size()), command_line(run.settings.context.args));
  line["model"] = run.model->name;
  line["variant"] = "plain";
  line["format"] = stored_format(model);
  line["method"] = "none";
  line["activation"] = dtype_name(model.activation());
  line["kv"] = kv_format_name(run.model->kv_format);
  line["backend"] = model.ops().backend;
  line["bits_per_weight"] = bits_per_weight(model);
  line["text"] = run.text_name();
  return line;
}

// Prints the numbers, for people or as JSON, and keeps them where --results says.
Status finish(const EvalRun& run, const nlohmann::json& numbers, const std::string& text) {
  nlohmann::json line = quality_line(run);
  line.update(numbers);
  HEARTH_TRY(write_stdout(run.settings.json ? line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                                            : text));
  if (run.settings.results.empty()) return {};
  return append_result(run.settings.results, line);
}

std::string time_line(int64_t tokens, double seconds) {
  return fmt::format("time              {:.1f} s, {:.0f} tokens/s\n", seconds, static_cast<double>(tokens) / seconds);
}

double seconds_since(const EvalRun& run, int64_t begin_ns) {
  return static_cast<double>(run.clock.now_ns() - begin_ns) * 1e-9;
}

struct Windows {
  std::vector<TokenId> ids;
  int64_t ctx = 0;
  std::vector<int64_t> chosen;
};

Result<Windows> read_windows(const EvalRun& run, const std::string& text) {
  const EvalSettings& s = run.settings;
  const ModelConfig& config = run.model->model->config();
  Windows w;
  HEARTH_TRY_ASSIGN(w.ids, encode_documents(run.model->tokenizer, text).with_context(s.file));
  w.ctx = s.ctx.value_or(std::min(kUsualWindow, config.max_positions));
  if (w.ctx > config.max_positions)
    return invalid_argument("--ctx {} is more than the {} tokens of context that the model was made for", w.ctx,
                            config.max_positions);
  HEARTH_TRY_ASSIGN(const int64_t count, count_windows(std::ssize(w.ids), w.ctx).with_context(s.file));
  HEARTH_TRY_ASSIGN(w.chosen, chosen_windows(s, count));
  return w;
}

Result<int> run_ppl(const EvalSettings& s) {
  HEARTH_TRY(check_output_file("--results", s.results));
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(s.file).with_context("--text"));
  std::unique_ptr<ThreadPool> pool = make_pool(s.model);
  HEARTH_TRY_ASSIGN(auto model, open_model(s.model, *pool));
  EvalRun run{.settings = s, .pool = std::move(pool), .model = std::move(model), .interrupt = {}, .clock = {}};
  HEARTH_TRY_ASSIGN(const Windows w, read_windows(run, text));
  HEARTH_TRY_ASSIGN(
      Runner runner,
      Runner::create(run.model->model, eval_runner_options(*run.model->model, w.ctx, run.model->kv_format), *run.pool));
  EvalProgress progress(run.interrupt.flag(), s.model.quiet, "windows", std::ssize(w.chosen));
  const int64_t begin_ns = run.clock.now_ns();
  HEARTH_TRY_ASSIGN(const PerplexityResult r, perplexity(runner, w.ids, w.ctx, w.chosen, progress.control()));
  progress.finish();
  const double seconds = seconds_since(run, begin_ns);
  HEARTH_TRY(finish(run,
                    {{"ppl", r.ppl},
                     {"nll_per_token", r.nll_per_token},
                     {"tokens", r.tokens},
                     {"windows", r.windows},
                     {"ctx", w.ctx},
                     {"ids", w.ids.size()},
                     {"seconds", seconds}},
                    fmt::format("perplexity        {:.6g}\nnll per token     {:.6f} nats ({:.6f} bits)\n"
                                "tokens            {} in {} windows of {}\n",
                                r.ppl, r.nll_per_token, r.nll_per_token / std::log(2.0), r.tokens, r.windows, w.ctx) +
                        time_line(r.tokens, seconds)));
  return 0;
}

// A line for each item: its ids, as they were fed, and its score.
Status write_items(const std::string& path, std::span<const LambadaItem> items, std::span<const LambadaScore> scores) {
  if (path.empty()) return {};
  std::ofstream file(path, std::ios::trunc);
  for (size_t i = 0; i < items.size(); ++i) {
    const nlohmann::ordered_json line = {{"item", i},
                                         {"context", items[i].context},
                                         {"continuation", items[i].continuation},
                                         {"hit", scores[i].hit},
                                         {"logprob", scores[i].logprob}};
    file << line.dump() << '\n';
  }
  file.close();
  if (!file) return unavailable("--items: cannot write {}", path);
  return {};
}

Result<int> run_lambada(const EvalSettings& s) {
  HEARTH_TRY(check_output_file("--results", s.results));
  HEARTH_TRY(check_output_file("--items", s.items));
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(s.file).with_context("--data"));
  std::unique_ptr<ThreadPool> pool = make_pool(s.model);
  HEARTH_TRY_ASSIGN(auto model, open_model(s.model, *pool));
  EvalRun run{.settings = s, .pool = std::move(pool), .model = std::move(model), .interrupt = {}, .clock = {}};
  HEARTH_TRY_ASSIGN(const std::vector<LambadaItem> items,
                    parse_lambada(text, run.model->tokenizer, s.limit).with_context(s.file));
  if (items.empty()) return invalid_argument("{} has no items", s.file);
  const int64_t longest = longest_item(items), context = run.model->model->config().max_positions;
  if (longest > context)
    return invalid_argument("{}: the longest item has {} tokens; the model's context holds {}", s.file, longest,
                            context);
  HEARTH_TRY_ASSIGN(
      Runner runner,
      Runner::create(run.model->model,
                     eval_runner_options(*run.model->model, longest, run.model->kv_format, kLambadaSlots), *run.pool));
  EvalProgress progress(run.interrupt.flag(), s.model.quiet, "items", std::ssize(items));
  const int64_t begin_ns = run.clock.now_ns();
  HEARTH_TRY_ASSIGN(const LambadaResult r, lambada(runner, items, kLambadaSlots, progress.control()));
  progress.finish();
  HEARTH_TRY(write_items(s.items, items, r.scores));
  const double seconds = seconds_since(run, begin_ns);
  HEARTH_TRY(finish(
      run,
      {{"lambada_acc", r.acc},
       {"correct", r.correct},
       {"n", r.n},
       {"nll_per_word", r.nll_per_word},
       {"seconds", seconds}},
      fmt::format("accuracy          {:.4f} ({} of {})\nnll per word      {:.6f} nats\ntime              {:.1f} s, "
                  "{:.0f} items/s\n",
                  r.acc, r.correct, r.n, r.nll_per_word, seconds, static_cast<double>(r.n) / seconds)));
  return 0;
}

Result<int> run_kl(const EvalSettings& s) {
  HEARTH_TRY(check_output_file("--results", s.results));
  HEARTH_TRY_ASSIGN(const std::string text, read_text_file(s.file).with_context("--text"));
  std::unique_ptr<ThreadPool> pool = make_pool(s.model);
  HEARTH_TRY_ASSIGN(auto model, open_model(s.model, *pool));
  // The reference is what it is, whatever --dtype says of the model.
  ModelSettings reference_settings = s.model;
  reference_settings.model = s.against;
  reference_settings.dtype = reference_settings.kv_cache_dtype = s.against_dtype;
  if (s.against_device != "auto") reference_settings.device = s.against_device;
  HEARTH_TRY_ASSIGN(const auto reference, open_model(reference_settings, *pool).with_context("--against"));
  EvalRun run{.settings = s, .pool = std::move(pool), .model = std::move(model), .interrupt = {}, .clock = {}};
  HEARTH_TRY_ASSIGN(const Windows w, read_windows(run, text));
  const ModelConfig &a = run.model->model->config(), &b = reference->model->config();
  if (a.vocab_size != b.vocab_size)
    return invalid_argument("{} has a vocabulary of {} tokens, {} one of {}; the same one is needed", run.model->name,
                            a.vocab_size, reference->name, b.vocab_size);
  HEARTH_TRY_ASSIGN(const std::vector<TokenId> reference_ids,
                    encode_documents(reference->tokenizer, text).with_context(s.file));
  if (reference_ids != w.ids)
    return invalid_argument("{} and {} make different tokens of {}; the same tokenizer is needed", run.model->name,
                            reference->name, s.file);
  if (w.ctx > b.max_positions)
    return invalid_argument("windows of {} tokens; the context of {} holds {}", w.ctx, reference->name,
                            b.max_positions);
  HEARTH_TRY_ASSIGN(
      Runner runner,
      Runner::create(run.model->model, eval_runner_options(*run.model->model, w.ctx, run.model->kv_format), *run.pool));
  HEARTH_TRY_ASSIGN(
      Runner reference_runner,
      Runner::create(reference->model, eval_runner_options(*reference->model, w.ctx, reference->kv_format), *run.pool));
  EvalProgress progress(run.interrupt.flag(), s.model.quiet, "windows", std::ssize(w.chosen));
  const int64_t begin_ns = run.clock.now_ns();
  HEARTH_TRY_ASSIGN(const KlResult r,
                    kl_divergence(runner, reference_runner, w.ids, w.ctx, w.chosen, progress.control()));
  progress.finish();
  const double seconds = seconds_since(run, begin_ns);
  HEARTH_TRY(finish(run,
                    {{"against", reference->name},
                     {"against_activation", dtype_name(reference->model->activation())},
                     {"against_backend", reference->model->ops().backend},
                     {"kl", r.kl},
                     {"kl_standard_error", r.kl_standard_error},
                     {"kl_max", r.kl_max},
                     {"same_top", r.same_top},
                     {"ppl", std::exp(r.nll_per_token)},
                     {"nll_per_token", r.nll_per_token},
                     {"nll_per_token_against", r.nll_per_token_reference},
                     {"tokens", r.tokens},
                     {"windows", r.windows},
                     {"ctx", w.ctx},
                     {"seconds", seconds}},
                    fmt::format("KL(against, model)  {:.6g} +- {:.2g} nats per token, at most {:.4g}\n"
                                "same top token    {:.3f} %\nperplexity        {:.6g}, of {} {:.6g}\n"
                                "tokens            {} in {} windows of {}\n",
                                r.kl, r.kl_standard_error, r.kl_max, 100 * r.same_top, std::exp(r.nll_per_token),
                                reference->name, std::exp(r.nll_per_token_reference), r.tokens, r.windows, w.ctx) +
                        time_line(r.tokens, seconds)));
  return 0;
}

void add_common(CLI::App& command, EvalSettings& s) {
  add_model_options(command, s.model);
  add_setting(command, kLimit, s.limit)->group("Work");
  add_text(command, "--results", "FILE",
           "Appends the numbers to FILE as a line of JSON with date, commit, device and command.", s.results)
      ->group("Output");
  command.add_flag("--json", s.json, "One JSON object instead of lines for people.")->group("Output");
}

void add_windows(CLI::App& command, EvalSettings& s) {
  add_text(command, "--text", "FILE", "The text, UTF-8.", s.file)->required()->group("Work");
  add_text(command, "--windows", "LIST", "Only these windows, such as 0-127,200; @FILE reads the list from FILE.",
           s.windows)
      ->group("Work");
  add_setting(command, kCtx, s.ctx, "the model's context, at most 2048")->group("Work");
}

}  // namespace

std::vector<Command> add_eval_commands(CLI::App& app, const CommandContext& context) {
  CLI::App* eval = app.add_subcommand("eval", "Measures how good a model is.");
  eval->require_subcommand(0, 1)->fallthrough();
  const auto report = std::make_shared<EvalReportSettings>();
  report->context = context;
  CLI::Option* const report_option = add_report_options(*eval, *report);
  eval->footer(kReportExamples);
  const auto settings = [&] {
    auto s = std::make_shared<EvalSettings>();
    s->context = context;
    return s;
  };

  const auto ppl = settings();
  CLI::App* ppl_command = eval->add_subcommand("ppl", "Perplexity on a text.");
  ppl_command->fallthrough()->footer(
      std::string(kTextRule) +
      "\nExamples:\n  hearth eval ppl models/fable-13m --text book.txt\n"
      "  hearth eval ppl models/fable-13m --text book.txt --dtype bf16 --windows 0-127 --json\n");
  add_common(*ppl_command, *ppl);
  add_windows(*ppl_command, *ppl);

  const auto lambada_settings = settings();
  CLI::App* lambada_command = eval->add_subcommand("lambada", "Accuracy at guessing the last word of a passage.");
  lambada_command->fallthrough()->footer(
      "The rule: an item counts where every token of ' ' + continuation is the likeliest one after BOS + context and "
      "the\n"
      "tokens before it. FILE has one JSON object a line, with the strings context and continuation.\n"
      "\nExamples:\n  hearth eval lambada models/fable-13m --data lambada.jsonl --limit 500\n");
  add_common(*lambada_command, *lambada_settings);
  add_text(*lambada_command, "--data", "FILE", "The items, JSON lines.", lambada_settings->file)
      ->required()
      ->group("Work");
  add_text(*lambada_command, "--items", "FILE",
           "Writes a line of JSON for each item to FILE: ids of context and continuation, hit, log probability.",
           lambada_settings->items)
      ->group("Output");

  const auto kl = settings();
  CLI::App* kl_command = eval->add_subcommand("kl", "How far a model is from another one, its original say.");
  kl_command->fallthrough()->footer(
      std::string("Reports the mean of KL(P of the other || Q of MODEL) per token in nats, with the\n"
                  "standard error of that mean (tokens taken as independent), and how often both\n"
                  "find the same token likeliest.\n\n") +
      kTextRule +
      "\nExamples:\n  hearth eval kl fable-int4 --against fable-13m --text book.txt\n"
      "  hearth eval kl fable-int4 --device cuda --against fable-int4 --against-device cpu --text book.txt\n");
  add_common(*kl_command, *kl);
  add_text(*kl_command, "--against", "MODEL", "The other model, the reference. Same tokenizer.", kl->against)
      ->required()
      ->group("Model");
  static constexpr const char* kDTypes[] = {"f32", "bf16"};
  add_choice(*kl_command, "--against-dtype", kDTypes, "Type of its values between the layers, keys and values.",
             kl->against_dtype)
      ->group("Model");
  static constexpr const char* kDevices[] = {"auto", "cpu", "cuda", "cuda:N", "ref"};
  add_choice(*kl_command, "--against-device", kDevices, "What computes it; auto is what computes MODEL.",
             kl->against_device)
      ->group("Model");
  add_windows(*kl_command, *kl);

  for (CLI::App* command : {ppl_command, lambada_command, kl_command}) command->excludes(report_option);
  const auto run_eval = [eval, report_option, report]() -> Result<int> {
    if (report_option->count() > 0) return run_report(*report);
    HEARTH_TRY(write_stdout(eval->help("hearth")));
    return 0;
  };
  return {{eval, run_eval},
          {ppl_command, [ppl] { return run_ppl(*ppl); }},
          {lambada_command, [lambada_settings] { return run_lambada(*lambada_settings); }},
          {kl_command, [kl] { return run_kl(*kl); }}};
}

}  // namespace hearth
