// SPDX-License-Identifier: Apache-2.0
// hearth bench model: how fast one model runs alone, as a table in llama-bench's form and as lines of JSON. The main
// thread.
#include <nlohmann/json.hpp>

#include "hearth/cli/bench_budget.h"
#include "hearth/cli/bench_common.h"
#include "hearth/cli/bench_model.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 20;
constexpr Setting<int64_t> kRepetitions{"-r,--repetitions", "N", 1, 1000, "", "Times that each test runs."};
constexpr Setting<int64_t> kStepTokens{
    "--max-num-batched-tokens", "N", 1, kMostTokens, "tokens", "Most tokens of a step; longer prompts take several."};
constexpr Setting<int64_t> kTokens{"", "", 1, kMostTokens, "tokens", ""};
constexpr Setting<int64_t> kDepth{"", "", 0, kMostTokens, "tokens", ""};
constexpr Setting<int64_t> kBatch{"", "", 1, 65536, "sequences", ""};

constexpr const char* kHelp =
    "ppN is the time to the logits after prompts of N tokens, tgN that of N further tokens for each sequence of a\n"
    "batch, one a step, each the most likely one after the step before. Prompts are random. Lists are separated by\n"
    "commas; an empty one leaves its tests out. t/s is the median over the repetitions; the floor is what memory\n"
    "allows if a step read its weights, keys and values and did nothing else (on a GPU by the speed of a copy).\n\n"
    "--budget takes one step of each test apart: all calls of an op in the step, on its weights and its memory, timed\n"
    "as one behind the other; then the whole step, and the step as it is called. The parts add up to more than the\n"
    "step where they overlap, to less where gaps lie between them.\n\n"
    "Examples:\n"
    "  hearth bench model models/fable-13m --n-prompt 512 --batch 1,8\n"
    "  hearth bench model bench/configs/llama-3-8b.json --load-format dummy --device cuda --n-depth 1024\n";

struct BenchModelSettings {
  CommandContext context;
  ModelSettings model;
  std::string prompts = "512,4096", outputs = "128", batches = "1,8,32,128", prompt_batches = "1", depths = "0";
  int64_t repetitions = 3, step_tokens = 4096;
  CLI::Option *prompts_option = nullptr, *outputs_option = nullptr;
  std::string results, note;
  bool json = false, budget = false;
};

struct TestLists {
  std::vector<int64_t> prompts, outputs, batches, prompt_batches, depths;
};

Result<TestLists> parse_lists(const BenchModelSettings& s) {
  TestLists lists;
  HEARTH_TRY_ASSIGN(lists.prompts, parse_list("--n-prompt", s.prompts, kTokens));
  HEARTH_TRY_ASSIGN(lists.outputs, parse_list("--n-gen", s.outputs, kTokens));
  HEARTH_TRY_ASSIGN(lists.batches, parse_list("--batch", s.batches, kBatch));
  HEARTH_TRY_ASSIGN(lists.prompt_batches, parse_list("--prompt-batch", s.prompt_batches, kBatch));
  HEARTH_TRY_ASSIGN(lists.depths, parse_list("--n-depth", s.depths, kDepth));
  return lists;
}

// All tests that were asked for. Those of the default lists that do not fit into the model's context are left out,
// which stderr says; others are an error.
Result<std::vector<ModelBenchTest>> plan_tests(const BenchModelSettings& s, const TestLists& lists,
                                               const ModelConfig& config) {
  std::vector<ModelBenchTest> tests;
  const auto add = [&](const ModelBenchTest& test, bool asked) -> Status {
    if (test.depth + test.tokens <= config.max_positions) {
      tests.push_back(test);
      return {};
    }
    const Error error = invalid_argument("{}{} at a depth of {} needs a context of {} tokens; the model's is {}",
                                         test.decode ? "tg" : "pp", test.tokens, test.depth, test.depth + test.tokens,
                                         config.max_positions);
    if (asked) return error;
    if (!s.model.quiet) write_stderr(error.message + ": left out");
    return {};
  };
  for (const int64_t depth : lists.depths) {
    for (const int64_t tokens : lists.prompts)
      for (const int64_t batch : lists.prompt_batches)
        HEARTH_TRY(add({.tokens = tokens, .batch = batch, .depth = depth}, s.prompts_option->count() > 0));
    for (const int64_t tokens : lists.outputs)
      for (const int64_t batch : lists.batches)
        HEARTH_TRY(
            add({.decode = true, .tokens = tokens, .batch = batch, .depth = depth}, s.outputs_option->count() > 0));
  }
  if (tests.empty()) return invalid_argument("no test: --n-prompt and --n-gen are empty, or nothing of them fits");
  return tests;
}

// What the lines and the table say of the model.
struct BenchedModel {
  std::shared_ptr<const ServedModel> served;
  std::string device, command, act;
};

nlohmann::json base_line(const BenchModelSettings& s, const BenchedModel& m, std::string_view bench) {
  nlohmann::json line = result_line(bench, m.device, m.command);
  line["config"] = m.served->name;
  line["format"] = stored_format(*m.served->model);
  if (!s.note.empty()) line["note"] = s.note;
  return line;
}

nlohmann::json test_line(const BenchModelSettings& s, const BenchedModel& m, const ModelBenchTest& test,
                         const ModelBenchResult& result) {
  nlohmann::json line = base_line(s, m, test.decode ? "model.decode" : "model.prefill");
  line["kv"] = std::string(kv_format_name(m.served->kv_format));
  line["act"] = m.act;
  line["batch"] = test.batch;
  line["repetitions"] = s.repetitions;
  line["tokens_per_s"] = result.tokens_per_s;
  line["us"] = result.us;
  line["us_p10"] = result.us_p10;
  line["us_p90"] = result.us_p90;
  if (test.decode) {
    line["lm_head"] = to_string(m.served->model->weights().lm_head.parts.front().format);
    line["context"] = test.depth;
    line["tokens"] = test.tokens;
    line["graphs"] = !s.model.enforce_eager && !m.served->model->ops().memory().is_host();
    if (result.floor_tokens_per_s > 0) line["floor_tokens_per_s"] = result.floor_tokens_per_s;
  } else {
    line["length"] = test.tokens;
    line["depth"] = test.depth;
  }
  return line;
}

std::string count_text(double count) {
  return count >= 1e9 ? fmt::format("{:.2f} B", count * 1e-9) : fmt::format("{:.2f} M", count * 1e-6);
}

std::string bytes_text(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib >= 1024 ? fmt::format("{:.2f} GiB", mib / 1024) : fmt::format("{:.2f} MiB", mib);
}

constexpr const char* kTableHead =
    "| model | size | params | backend | kv | batch | test | t/s | us, p10 to p90 | of floor |\n"
    "|---|---:|---:|---|---|---:|---|---:|---:|---:|\n";

std::string table_row(const BenchedModel& m, const ModelBenchTest& test, const ModelBenchResult& result) {
  const Model& model = *m.served->model;
  std::string name = fmt::format("{}{}", test.decode ? "tg" : "pp", test.tokens);
  if (test.depth > 0) name += fmt::format(" @ d{}", test.depth);
  const double floor = result.floor_tokens_per_s;
  const int64_t parameters = count_parameters(model.config());
  return fmt::format("| {} {} | {} | {} | {} {} | {} | {} | {} | {:.2f} ± {:.2f} | {:.1f}, {:.1f} to {:.1f} | {} |\n",
                     m.served->name, stored_format(model), bytes_text(model.weights().memory.size_bytes()),
                     count_text(static_cast<double>(parameters)), model.ops().backend, m.act,
                     kv_format_name(m.served->kv_format), test.batch, name, result.tokens_per_s,
                     result.tokens_per_s_deviation, result.us, result.us_p10, result.us_p90,
                     floor > 0 ? fmt::format("{:.1f} %", 100 * result.tokens_per_s / floor) : std::string("-"));
}

// "a decode step of 8 behind 1024 tokens each"
std::string step_name(const ModelBenchTest& test) {
  if (test.decode) return fmt::format("a decode step of {} behind {} tokens each", test.batch, test.depth);
  if (test.batch > 1) return fmt::format("{} prompts of {} tokens behind {}", test.batch, test.tokens, test.depth);
  return fmt::format("a prompt of {} tokens behind {}", test.tokens, test.depth);
}

constexpr const char* kBudgetHead =
    "| part | calls | us | p10 to p90 | of the step | MB | floor us | of floor | TFLOP/s |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";

std::string budget_row(const BudgetRow& row, const Budget& budget, double speed) {
  const double floor_us = speed > 0 ? row.bytes / speed * 1e6 : 0;
  return fmt::format("| {} | {} | {:.1f} | {:.1f} to {:.1f} | {:.1f} % | {:.1f} | {} | {} | {} |\n", row.part,
                     row.calls, row.us, row.us_p10, row.us_p90, 100 * row.us / budget.step_us, row.bytes * 1e-6,
                     floor_us > 0 ? fmt::format("{:.1f}", floor_us) : std::string("-"),
                     floor_us > 0 ? fmt::format("{:.1f} %", 100 * floor_us / row.us) : std::string("-"),
                     row.flops > 0 ? fmt::format("{:.1f}", row.flops / row.us * 1e-6) : std::string("-"));
}

// `speed`: bytes a second, 0 for unknown.
std::string budget_table(const BenchedModel& m, const ModelBenchTest& test, const Budget& budget, double speed) {
  std::string text = fmt::format("\n{}, {}, KV {}: {}{}\n\n{}", m.served->name, stored_format(*m.served->model),
                                 kv_format_name(m.served->kv_format), step_name(test),
                                 budget.recorded ? ", as recordings" : "", kBudgetHead);
  for (const BudgetRow& row : budget.rows) text += budget_row(row, budget, speed);
  const auto line = [&](std::string_view name, double us) {
    text += fmt::format("| {} | | {:.1f} | | {:.1f} % | | | | |\n", name, us, 100 * us / budget.step_us);
  };
  line("all parts", budget.parts_us);
  line("the step's ops", budget.step_us);
  line("gaps less overlap", budget.step_us - budget.parts_us);
  text += budget_row(budget.sampling, budget, budget.samples_on_device || !budget.recorded ? speed : 0);
  line("host and copies", budget.rest_us());
  line("the step as called", budget.called_us);
  return text;
}

class BenchModelRun {
 public:
  explicit BenchModelRun(const BenchModelSettings& settings) : s_(settings) {}

  Result<int> run() {
    HEARTH_TRY(check_output_file("--results", s_.results));
    HEARTH_TRY_ASSIGN(const TestLists lists, parse_lists(s_));
    const std::unique_ptr<ThreadPool> pool = make_pool(s_.model);
    HEARTH_TRY_ASSIGN(m_.served, open_model(s_.model, *pool));
    const Model& model = *m_.served->model;
    m_.device = device_of(model.ops(), pool->size());
    m_.command = command_line(s_.context.args);
    m_.act = dtype_name(model.activation());
    HEARTH_TRY_ASSIGN(const std::vector<ModelBenchTest> tests, plan_tests(s_, lists, model.config()));
    const SteadyClock clock;
    const ModelBench bench{.model = m_.served->model,
                           .kv_format = m_.served->kv_format,
                           .pool = pool.get(),
                           .clock = &clock,
                           .step_tokens = s_.step_tokens,
                           .repetitions = s_.repetitions,
                           .decode_graphs = !s_.model.enforce_eager};
    HEARTH_TRY_ASSIGN(const double speed, read_speed(bench));
    HEARTH_TRY(report_load(speed));
    if (s_.budget) return run_budgets(bench, tests, speed);
    if (!s_.json) HEARTH_TRY(write_stdout(kTableHead));
    for (const ModelBenchTest& test : tests) {
      HEARTH_TRY_ASSIGN(const ModelBenchResult result, run_model_bench(bench, test, speed));
      if (!s_.json) HEARTH_TRY(write_stdout(table_row(m_, test, result)));
      HEARTH_TRY(keep(test_line(s_, m_, test, result)));
    }
    return 0;
  }

 private:
  Status report_load(double speed) {
    nlohmann::json line = base_line(s_, m_, "model.load");
    line["seconds"] = m_.served->load_seconds;
    line["bytes"] = m_.served->model->weights().memory.size_bytes();
    line["load_format"] = s_.model.load_format;
    if (!s_.model.quiet)
      write_stderr(fmt::format("{}; {} loaded in {:.2f} s; memory is read with {:.0f} GB/s", m_.device,
                               bytes_text(m_.served->model->weights().memory.size_bytes()), m_.served->load_seconds,
                               speed * 1e-9));
    return keep(line);
  }

  Result<int> run_budgets(const ModelBench& bench, const std::vector<ModelBenchTest>& tests, double speed) {
    for (const ModelBenchTest& test : tests) {
      HEARTH_TRY_ASSIGN(const Budget budget, run_budget(bench, test).with_context(step_name(test)));
      if (!s_.json) HEARTH_TRY(write_stdout(budget_table(m_, test, budget, speed)));
      HEARTH_TRY(keep(budget_line(test, budget, speed)));
    }
    return 0;
  }

  nlohmann::json budget_line(const ModelBenchTest& test, const Budget& budget, double speed) const {
    nlohmann::json line = base_line(s_, m_, "model.budget");
    line["kv"] = std::string(kv_format_name(m_.served->kv_format));
    line["act"] = m_.act;
    line["batch"] = test.batch;
    if (test.decode) {
      line["context"] = test.depth;
    } else {
      line["length"] = test.tokens, line["depth"] = test.depth;
    }
    nlohmann::json parts = nlohmann::json::array();
    const auto add = [&](const BudgetRow& row) {
      nlohmann::json part = {{"part", row.part},     {"calls", row.calls},   {"us", row.us},
                             {"us_p10", row.us_p10}, {"us_p90", row.us_p90}, {"bytes", row.bytes}};
      if (row.flops > 0) part["flops"] = row.flops;
      if (speed > 0) part["floor_us"] = row.bytes / speed * 1e6;
      parts.push_back(std::move(part));
    };
    for (const BudgetRow& row : budget.rows) add(row);
    add(budget.sampling);
    line["parts"] = std::move(parts);
    line["parts_us"] = budget.parts_us, line["step_us"] = budget.step_us, line["called_us"] = budget.called_us;
    line["rest_us"] = budget.rest_us();
    line["graphs"] = budget.recorded, line["samples_on_device"] = budget.samples_on_device;
    return line;
  }

  Status keep(const nlohmann::json& line) const {
    if (s_.json) HEARTH_TRY(write_stdout(line.dump() + "\n"));
    if (!s_.results.empty()) HEARTH_TRY(append_result(s_.results, line));
    return {};
  }

  const BenchModelSettings& s_;
  BenchedModel m_;
};

}  // namespace

Command add_bench_model_command(CLI::App& bench, const CommandContext& context) {
  const auto s = std::make_shared<BenchModelSettings>();
  s->context = context;
  CLI::App* command = bench.add_subcommand("model", "Speed of a model alone: prompts and decode steps.");
  command->fallthrough()->footer(kHelp);
  add_model_options(*command, s->model);
  constexpr const char* kTests = "Tests";
  s->prompts_option =
      add_text(*command, "-p,--n-prompt", "LIST", "Tokens of the prompts (default: 512,4096).", s->prompts)
          ->group(kTests);
  s->outputs_option =
      add_text(*command, "-n,--n-gen", "LIST", "Tokens that each sequence gets (default: 128).", s->outputs)
          ->group(kTests);
  add_text(*command, "-b,--batch", "LIST", "Sequences that get tokens together (default: 1,8,32,128).", s->batches)
      ->group(kTests);
  add_text(*command, "--prompt-batch", "LIST", "Sequences whose prompts are computed together (default: 1).",
           s->prompt_batches)
      ->group(kTests);
  add_text(*command, "-d,--n-depth", "LIST", "Tokens in the context before a test begins (default: 0).", s->depths)
      ->group(kTests);
  add_setting(*command, kRepetitions, s->repetitions)->group(kTests);
  add_setting(*command, kStepTokens, s->step_tokens)->group(kTests);
  command
      ->add_flag("--budget", s->budget,
                 "Takes a step of each test apart instead of timing the test: where its time goes.")
      ->group(kTests);
  constexpr const char* kReport = "Report";
  add_text(*command, "--results", "FILE",
           "Appends each number to FILE as a line of JSON with date, commit, device and command.", s->results)
      ->group(kReport);
  add_text(*command, "--note", "TEXT", "A word on the circumstances, for those lines.", s->note)->group(kReport);
  command->add_flag("--json", s->json, "Prints those lines instead of the table.")->group(kReport);
  return {command, [s] { return BenchModelRun(*s).run(); }};
}

}  // namespace hearth
