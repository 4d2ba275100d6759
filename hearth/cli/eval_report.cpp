// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/eval_report.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/checkpoint/fingerprint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/quantize_report.h"
#include "hearth/cli/report_spec.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/chosen_list.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/report.h"
#include "hearth/eval/results.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

constexpr Setting<int64_t> kTogether{
    "--together", "N", 0, 1 << 20, "models", "Models in memory at a time, beside the reference; 0 for all of them."};
constexpr Setting<int64_t> kSpeedRounds{
    "--speed-rounds", "N", 0, 1 << 20, "", "Repetitions of the speed measurement; 0 leaves it out."};

// One text as it is scored: the ids are the reference's, every model must make the same ones.
struct Text {
  FileSpec file;
  std::string text;
  std::vector<TokenId> ids;
  ChosenList list;
};

struct Items {
  FileSpec file;
  std::string text;
  std::vector<LambadaItem> items;
  ChosenList list;
};

// A model while it is in memory.
struct OpenModel {
  std::shared_ptr<const ServedModel> served;
  std::string logits;  // key
  std::optional<Runner> windows;
  std::optional<Runner> items;
};

class ReportRun {
 public:
  explicit ReportRun(const EvalReportSettings& settings) : s_(settings), pool_(make_pool(settings.run)) {}

  Result<int> run();

 private:
  Status parse();
  Status read_inputs(const ServedModel& reference);
  Status read_text(const ServedModel& reference, const std::string& spec, std::span<const ChosenList> lists);
  Status read_items(const ServedModel& reference, std::span<const ChosenList> lists);
  // Same ids of the same inputs.
  Status check_tokenizer(const ServedModel& model) const;
  Result<OpenModel> open(size_t row);
  Status make_runners(OpenModel& model);
  Status describe(const OpenModel& model, ReportRow& row);
  // Everything about rows [begin, begin + models.size()), row 0 being the reference.
  Status measure(std::span<OpenModel> models, size_t begin, OpenModel& reference);
  Status measure_windows(std::span<const ReportModel> models, const ReportModel& reference, size_t text, size_t begin);
  Status measure_items(std::span<OpenModel> models, size_t begin);
  Status measure_speeds(std::span<OpenModel> models, size_t begin);
  Status write() const;

  const EvalReportSettings& s_;
  std::unique_ptr<ThreadPool> pool_;
  InterruptGuard interrupt_;
  SteadyClock clock_;
  std::vector<ModelSpec> specs_;  // of each row, the reference's first
  std::filesystem::path reference_dir_;
  std::vector<Text> texts_;
  std::optional<Items> items_;
  int64_t ctx_ = 0;
  ReportState state_;
  Report report_;
};

Status ReportRun::parse() {
  if (s_.reference.empty())
    return invalid_argument("--report needs --reference MODEL, what the models are compared with");
  if (s_.texts.empty() && s_.lambada.empty() && s_.speed_rounds == 0)
    return invalid_argument("nothing to measure; wanted --text FILE, --lambada FILE or --speed-rounds above 0");
  HEARTH_TRY_ASSIGN(ModelSpec reference, parse_model_spec(s_.reference).with_context("--reference"));
  specs_.push_back(std::move(reference));
  for (const std::string& text : s_.models) {
    HEARTH_TRY_ASSIGN(ModelSpec spec, parse_model_spec(text).with_context("--report"));
    specs_.push_back(std::move(spec));
  }
  for (ModelSpec& spec : specs_) {
    HEARTH_TRY_ASSIGN(const FoundModel found, find_model(spec.path));
    if (spec.name.empty()) spec.name = found.name + (spec.kv ? fmt::format("@kv={}", kv_format_name(*spec.kv)) : "");
    report_.rows.push_back({.name = spec.name, .model = found.name});
  }
  for (size_t i = 0; i < specs_.size(); ++i) {
    for (size_t k = 0; k < i; ++k)
      if (specs_[i].name == specs_[k].name)
        return invalid_argument("two models are called {}; give them names, NAME=PATH", specs_[i].name);
    if (specs_[i].name == s_.baseline) report_.baseline = i;
  }
  if (!s_.baseline.empty() && !report_.baseline)
    return invalid_argument("--baseline: no model of the report is called {}", s_.baseline);
  HEARTH_TRY(check_output_file("--markdown", s_.markdown));
  HEARTH_TRY(check_output_file("--results", s_.results));
  HEARTH_TRY_ASSIGN(state_, ReportState::open(s_.state).with_context("--state"));
  return {};
}

// The list that names the text; everything where no lists are given.
Result<ChosenList> list_for(const std::string& text, ChosenList::Unit unit, int64_t of,
                            std::span<const ChosenList> lists) {
  if (lists.empty()) return all_of(text, unit, of);
  for (const ChosenList& list : lists)
    if (list.text == text) return list;
  return invalid_argument("--lists: none of them is of {}", text);
}

void limit_list(ChosenList& list, int64_t limit) {
  if (limit == 0 || std::ssize(list.chosen) <= limit) return;
  list.chosen.resize(static_cast<size_t>(limit));
  list.name += fmt::format(", first {}", limit);
}

Status ReportRun::read_text(const ServedModel& reference, const std::string& spec, std::span<const ChosenList> lists) {
  Text text;
  HEARTH_TRY_ASSIGN(text.file, parse_file_spec(spec).with_context("--text"));
  HEARTH_TRY_ASSIGN(text.text, read_text_file(text.file.path).with_context("--text"));
  HEARTH_TRY_ASSIGN(text.ids, encode_documents(reference.tokenizer, text.text).with_context(text.file.path));
  HEARTH_TRY_ASSIGN(const int64_t count, count_windows(std::ssize(text.ids), ctx_).with_context(text.file.path));
  HEARTH_TRY_ASSIGN(text.list, list_for(text.file.name, ChosenList::Unit::kWindow, count, lists));
  HEARTH_TRY(check_window_list(text.list, ctx_, std::ssize(text.ids), count));
  limit_list(text.list, s_.limit);
  report_.texts.push_back(
      {.name = text.file.name, .list = text.list.name, .ctx = ctx_, .count = std::ssize(text.list.chosen)});
  texts_.push_back(std::move(text));
  return {};
}

Status ReportRun::read_items(const ServedModel& reference, std::span<const ChosenList> lists) {
  Items items;
  HEARTH_TRY_ASSIGN(items.file, parse_file_spec(s_.lambada).with_context("--lambada"));
  HEARTH_TRY_ASSIGN(items.text, read_text_file(items.file.path).with_context("--lambada"));
  HEARTH_TRY_ASSIGN(items.items, parse_lambada(items.text, reference.tokenizer).with_context(items.file.path));
  if (items.items.empty()) return invalid_argument("{} has no items", items.file.path);
  const int64_t count = std::ssize(items.items);
  HEARTH_TRY_ASSIGN(items.list, list_for(items.file.name, ChosenList::Unit::kItem, count, lists));
  HEARTH_TRY(check_item_list(items.list, count));
  limit_list(items.list, s_.limit);
  report_.lambada =
      ReportText{.name = items.file.name, .list = items.list.name, .ctx = 0, .count = std::ssize(items.list.chosen)};
  items_ = std::move(items);
  return {};
}

Status ReportRun::read_inputs(const ServedModel& reference) {
  const int64_t context = reference.model->config().max_positions;
  ctx_ = s_.ctx.value_or(std::min(kUsualWindow, context));
  if (ctx_ > context)
    return invalid_argument("--ctx {} is more than the {} tokens of the reference's context", ctx_, context);
  std::vector<ChosenList> lists;
  for (const std::string& file : s_.lists) {
    HEARTH_TRY_ASSIGN(ChosenList list, read_chosen_list(file).with_context("--lists"));
    lists.push_back(std::move(list));
  }
  for (const std::string& spec : s_.texts) HEARTH_TRY(read_text(reference, spec, lists));
  if (!s_.lambada.empty()) HEARTH_TRY(read_items(reference, lists));
  for (const ChosenList& list : lists) {
    const auto of = [&](const ReportText& text) { return text.name == list.text; };
    if (std::none_of(report_.texts.begin(), report_.texts.end(), of) && !(report_.lambada && of(*report_.lambada)))
      return invalid_argument("--lists: {} is of {}, which is not among the texts", list.name, list.text);
  }
  return {};
}

// The files that decide what tokens a text has are the same, byte for byte.
bool same_tokenizer_files(const std::filesystem::path& a, const std::filesystem::path& b) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    const bool there = std::filesystem::exists(a / name);
    if (there != std::filesystem::exists(b / name)) return false;
    if (!there) continue;
    const auto one = read_text_file(a / name), other = read_text_file(b / name);
    if (!one || !other || *one != *other) return false;
  }
  return true;
}

Status ReportRun::check_tokenizer(const ServedModel& model) const {
  if (same_tokenizer_files(model.dir, reference_dir_)) return {};
  for (const Text& text : texts_) {
    HEARTH_TRY_ASSIGN(const std::vector<TokenId> ids, encode_documents(model.tokenizer, text.text));
    if (ids != text.ids)
      return invalid_argument("it makes other tokens of {} than the reference; the same tokenizer is needed",
                              text.file.path);
  }
  if (!items_) return {};
  HEARTH_TRY_ASSIGN(const std::vector<LambadaItem> items, parse_lambada(items_->text, model.tokenizer));
  const auto same = [](const LambadaItem& a, const LambadaItem& b) {
    return a.context == b.context && a.continuation == b.continuation;
  };
  if (!std::equal(items.begin(), items.end(), items_->items.begin(), items_->items.end(), same))
    return invalid_argument("it makes other tokens of {} than the reference; the same tokenizer is needed",
                            items_->file.path);
  return {};
}

Result<OpenModel> ReportRun::open(size_t row) {
  const ModelSpec& spec = specs_[row];
  ModelSettings settings = s_.run;
  settings.model = spec.path;
  // The reference is what it is: in f32, whatever --dtype says of the models.
  if (row == 0) settings.dtype = settings.kv_cache_dtype = "f32";
  if (spec.kv) settings.kv_cache_dtype = kv_format_name(*spec.kv);
  OpenModel model;
  HEARTH_TRY_ASSIGN(model.served, open_model(settings, *pool_).with_context(spec.name));
  if (spec.kv && model.served->kv_format != *spec.kv)
    return unsupported("{}: KV format {} cannot be used here; {} would be", spec.name, kv_format_name(*spec.kv),
                       kv_format_name(model.served->kv_format));
  HEARTH_TRY(describe(model, report_.rows[row]).with_context(spec.name));
  HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(model.served->dir));
  HEARTH_TRY_ASSIGN(const std::string weights, checkpoint_fingerprint(checkpoint, *pool_).with_context(spec.name));
  model.logits = logits_key(weights, *model.served->model, model.served->kv_format);
  return model;
}

Status ReportRun::describe(const OpenModel& opened, ReportRow& row) {
  const Model& model = *opened.served->model;
  HEARTH_TRY_ASSIGN(const nlohmann::json config, read_json_object(opened.served->dir / "config.json"));
  // What tools/inject_outliers writes.
  row.variant = config.contains("injected_outliers") ? "outliers" : "plain";
  // Our quantizer says what it did; of others' checkpoints the configuration names a method.
  HEARTH_TRY_ASSIGN(const auto modules, read_quantize_report(opened.served->dir));
  // A report without a format is of a checkpoint that only asks for a KV cache.
  const std::string formats = formats_of(modules), methods = methods_of(modules);
  row.format = formats.empty() ? stored_format(model) : formats;
  const auto quantized = config.find("quantization_config");
  row.method = "none";
  if (!modules.empty()) {
    if (!methods.empty()) row.method = methods;
  } else if (quantized != config.end() && quantized->is_object()) {
    const auto method = quantized->find("quant_method");
    row.method = method != quantized->end() && method->is_string() ? method->get<std::string>() : "unknown";
  }
  row.activation = dtype_name(model.activation());
  row.kv = kv_format_name(opened.served->kv_format);
  row.backend = model.ops().backend;
  row.bits_per_weight = bits_per_weight(model);
  row.checkpoint_bytes = opened.served->weight_bytes;
  row.windows.resize(texts_.size());
  return {};
}

Status ReportRun::make_runners(OpenModel& model) {
  const ServedModel& served = *model.served;
  const int64_t speed = s_.speed_rounds > 0 ? report_.speed.prompt_tokens + report_.speed.decode_tokens : 1;
  HEARTH_TRY_ASSIGN(model.windows,
                    Runner::create(served.model,
                                   eval_runner_options(*served.model, std::max(ctx_, speed), served.kv_format,
                                                       windows_per_step(*served.model)),
                                   *pool_));
  if (!items_) return {};
  HEARTH_TRY_ASSIGN(model.items, Runner::create(served.model,
                                                eval_runner_options(*served.model, longest_item(items_->items),
                                                                    served.kv_format, kLambadaSlots),
                                                *pool_));
  return {};
}

Status ReportRun::measure_windows(std::span<const ReportModel> models, const ReportModel& reference, size_t text,
                                  size_t begin) {
  const Text& t = texts_[text];
  EvalProgress progress(interrupt_.flag(), s_.run.quiet, t.file.name, std::ssize(t.list.chosen) * std::ssize(models));
  HEARTH_TRY(score_windows(reference, models, t.ids, ctx_, t.list.chosen, state_, progress.control()));
  progress.finish();
  const std::string ids = ids_fingerprint(t.ids);
  for (size_t i = 0; i < models.size(); ++i) {
    const std::string key = window_key(models[i], reference, ids, ctx_);
    for (const int64_t window : t.list.chosen)
      report_.rows[begin + i].windows[text].push_back(*state_.window(key, window));
  }
  return {};
}

Status ReportRun::measure_items(std::span<OpenModel> models, size_t begin) {
  for (size_t i = 0; i < models.size(); ++i) {
    ReportRow& row = report_.rows[begin + i];
    const ReportModel model{.name = row.name, .logits = models[i].logits, .runner = &*models[i].items};
    EvalProgress progress(interrupt_.flag(), s_.run.quiet, items_->file.name + ", " + row.name,
                          std::ssize(items_->list.chosen));
    HEARTH_TRY(score_items(model, items_->items, items_->list.chosen, kLambadaSlots, state_, progress.control()));
    progress.finish();
    const std::string key = item_key(model, items_->items);
    for (const int64_t item : items_->list.chosen) row.items.push_back(*state_.item(key, item));
  }
  return {};
}

// The models take turns, so that what else the machine does meets all of them.
Status ReportRun::measure_speeds(std::span<OpenModel> models, size_t begin) {
  EvalProgress progress(interrupt_.flag(), s_.run.quiet, "speed", s_.speed_rounds);
  for (int64_t round = 0; round <= s_.speed_rounds; ++round) {
    HEARTH_TRY(progress.control().check(round, s_.speed_rounds));
    for (size_t i = 0; i < models.size(); ++i) {
      HEARTH_TRY_ASSIGN(const SpeedSample sample, measure_speed(*models[i].windows, report_.speed, clock_));
      // The first round warms up.
      if (round > 0) report_.rows[begin + i].speed.push_back(sample);
    }
    progress.control().report(round, s_.speed_rounds);
  }
  progress.finish();
  return {};
}

Status ReportRun::measure(std::span<OpenModel> models, size_t begin, OpenModel& reference) {
  const ReportModel against{.name = report_.rows[0].name, .logits = reference.logits, .runner = &*reference.windows};
  std::vector<ReportModel> scored;
  for (size_t i = 0; i < models.size(); ++i)
    scored.push_back({.name = report_.rows[begin + i].name, .logits = models[i].logits, .runner = &*models[i].windows});
  for (size_t t = 0; t < texts_.size(); ++t) HEARTH_TRY(measure_windows(scored, against, t, begin));
  if (items_) HEARTH_TRY(measure_items(models, begin));
  if (s_.speed_rounds > 0) HEARTH_TRY(measure_speeds(models, begin));
  return {};
}

Status ReportRun::write() const {
  const std::string table = report_markdown(report_);
  if (!s_.results.empty())
    for (const nlohmann::json& line : report_lines(report_)) HEARTH_TRY(append_result(s_.results, line));
  if (s_.markdown.empty()) return write_stdout(table);
  std::FILE* file = std::fopen(s_.markdown.c_str(), "wb");
  const bool written = file != nullptr && std::fwrite(table.data(), 1, table.size(), file) == table.size();
  if (file == nullptr || std::fclose(file) != 0 || !written)
    return unavailable("--markdown: cannot write {}", s_.markdown);
  return {};
}

Result<int> ReportRun::run() {
  HEARTH_TRY(parse());
  HEARTH_TRY_ASSIGN(const OpTable* const ops, ops_of(s_.run.device));
  report_.device = device_of(*ops, pool_->size());
  report_.command = command_line(s_.context.args);
  std::vector<OpenModel> models;
  HEARTH_TRY_ASSIGN(OpenModel first, open(0));
  reference_dir_ = first.served->dir;
  HEARTH_TRY(read_inputs(*first.served));
  const int64_t context = first.served->model->config().max_positions;
  report_.speed.prompt_tokens = std::min(report_.speed.prompt_tokens, context - report_.speed.decode_tokens);
  if (report_.speed.prompt_tokens < 1 && s_.speed_rounds > 0)
    return invalid_argument("a context of {} tokens is too short to measure speed in; wanted --speed-rounds 0",
                            context);
  report_.rows[0].windows.resize(texts_.size());
  HEARTH_TRY(make_runners(first));
  models.push_back(std::move(first));
  size_t begin = 0;  // row of models.front(); the reference is measured with the first models
  const size_t rows = specs_.size();
  const size_t together = s_.together > 0 ? static_cast<size_t>(s_.together) : rows;
  OpenModel reference;
  for (size_t next = 1; next < rows || begin == 0;) {
    const size_t end = std::min(rows, next + together);
    for (; next < end; ++next) {
      HEARTH_TRY_ASSIGN(OpenModel model, open(next));
      HEARTH_TRY(check_tokenizer(*model.served).with_context(specs_[next].name));
      HEARTH_TRY(make_runners(model).with_context(specs_[next].name));
      models.push_back(std::move(model));
    }
    HEARTH_TRY(measure(models, begin, begin == 0 ? models.front() : reference));
    if (begin == 0) reference = std::move(models.front());
    models.clear();
    begin = next;
  }
  HEARTH_TRY(write());
  return 0;
}

}  // namespace

CLI::Option* add_report_options(CLI::App& eval, EvalReportSettings& s) {
  constexpr const char* kGroup = "Report";
  CLI::Option* report =
      eval.add_option(
              "--report", s.models,
              "Judges these models side by side against --reference. A model is [NAME=]PATH[@kv=FORMAT]: a name "
              "for the table, a folder or org/name, and a KV format (f32, bf16, fp8, int4, int4-fireq, int4-saw).")
          ->type_name("MODEL...")
          ->expected(1, 1 << 20)
          ->group(kGroup);
  add_text(eval, "--reference", "MODEL", "What they are compared with, computed in f32; the table's first row.",
           s.reference)
      ->group(kGroup);
  add_text(eval, "--baseline", "NAME", "The model whose rise of perplexity and KL the others' are shares of.",
           s.baseline)
      ->group(kGroup);
  add_texts(eval, "--text", "[NAME=]FILE", "A text for perplexity and KL. May be repeated.", s.texts)->group(kGroup);
  add_text(eval, "--lambada", "[NAME=]FILE", "Items for the accuracy at the last word of a passage.", s.lambada)
      ->group(kGroup);
  eval.add_option(
          "--lists", s.lists,
          "Which windows and items are taken: files such as those in bench/eval, one for each text. Without it, "
          "all.")
      ->type_name("FILE...")
      ->expected(1, 1 << 20)
      ->group(kGroup);
  add_setting(eval, kCtx, s.ctx, "the reference's context, at most 2048")->group(kGroup);
  add_setting(eval, kLimit, s.limit)->group(kGroup);
  add_setting(eval, kTogether, s.together)->group(kGroup);
  add_setting(eval, kSpeedRounds, s.speed_rounds)->group(kGroup);
  add_text(eval, "--state", "FILE", "Keeps what was computed in FILE; a run that finds it there goes on.", s.state)
      ->group("Output");
  add_text(eval, "--markdown", "FILE", "Writes the table to FILE instead of standard output.", s.markdown)
      ->group("Output");
  add_text(eval, "--results", "FILE", "Appends the numbers to FILE as lines of JSON with date, commit and command.",
           s.results)
      ->group("Output");
  add_model_options(eval, s.run);
  // Said of each model.
  eval.remove_option(eval.get_option("MODEL"));
  eval.remove_option(eval.get_option("--kv-cache-dtype"));
  // What another command does not know falls through to here, where it must not be taken in silence.
  for (CLI::Option* option : eval.get_options())
    if (option != report && option != eval.get_help_ptr()) option->needs(report);
  return report;
}

Result<int> run_report(const EvalReportSettings& settings) { return ReportRun(settings).run(); }

}  // namespace hearth
