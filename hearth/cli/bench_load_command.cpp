// SPDX-License-Identifier: Apache-2.0
// hearth bench load: how long a model takes from its files to the first step. The main thread.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/base/progress.h"
#include "hearth/checkpoint/json.h"
#include "hearth/checkpoint/quantization.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/results.h"
#include "hearth/model/model.h"
#include "hearth/text/tokenizer.h"

namespace hearth {
namespace {

constexpr Setting<int64_t> kRepetitions{"-r,--repetitions", "N", 1, 1000, "", "Times that the model is loaded."};

constexpr const char* kHelp =
    "Loads the model again and again and says where the time goes: open reads the configuration and the files' "
    "headers,\n"
    "weights takes memory for the weights and brings them there, checked for numbers that are none. The start of the\n"
    "process and of the device come before, and are told apart. What the first load reads from the disk the next ones "
    "find\nin the page cache. bench/make_checkpoint.py writes checkpoints of any configuration.\n\n"
    "Examples:\n"
    "  hearth bench load models/fable-13m\n"
    "  hearth bench load /data/llama-3-8b --device cuda --results loads.jsonl\n";

struct BenchLoadSettings {
  CommandContext context;
  ModelSettings model;
  int64_t repetitions = 3;
  std::string results, note;
  bool json = false;
};

constexpr const char* kTableHead =
    "| model | size | backend | threads | load | open s | tokenizer s | weights s | all s | weights GB/s |\n"
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|\n";

class Stopwatch {
 public:
  // Seconds since the last call, or since the start.
  double lap() {
    const int64_t now_ns = clock_.now_ns();
    return static_cast<double>(now_ns - std::exchange(begin_ns_, now_ns)) * 1e-9;
  }

 private:
  const SteadyClock clock_;
  int64_t begin_ns_ = clock_.now_ns();
};

// Where the time of a load went, in seconds.
struct Times {
  double open = 0, tokenizer = 0, weights = 0;
  double all() const { return open + tokenizer + weights; }
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

class BenchLoadRun {
 public:
  explicit BenchLoadRun(const BenchLoadSettings& settings) : s_(settings) {}

  Result<int> run() {
    HEARTH_TRY(check_output_file("--results", s_.results));
    HEARTH_TRY_ASSIGN(found_, find_model(s_.model.model, is_dummy()));
    HEARTH_TRY_ASSIGN(ops_, ops_of(s_.model.device));
    pool_ = make_pool(s_.model);
    Stopwatch watch;
    if (ops_->prepare) HEARTH_TRY(ops_->prepare());
    const double prepare_s = watch.lap();
    if (!s_.json) HEARTH_TRY(write_stdout(kTableHead));
    nlohmann::json line;
    std::vector<Times> loads;
    for (int64_t i = 1; i <= s_.repetitions; ++i) {
      Times times;
      HEARTH_TRY_ASSIGN(const std::shared_ptr<const Model> model, is_dummy() ? make_dummy(times) : load(times));
      loads.push_back(times);
      line = describe(*model);
      if (!s_.json) HEARTH_TRY(write_stdout(row(*model, times, i)));
    }
    const auto middle = [&](auto member) {
      std::vector<double> values;
      for (const Times& times : loads) values.push_back(member(times));
      return median(std::move(values));
    };
    line["seconds"] = middle([](const Times& times) { return times.all(); });
    line["open_seconds"] = middle([](const Times& times) { return times.open; });
    line["tokenizer_seconds"] = middle([](const Times& times) { return times.tokenizer; });
    line["weights_seconds"] = middle([](const Times& times) { return times.weights; });
    for (const Times& times : loads) line["seconds_each"].push_back(times.all());
    line["prepare_seconds"] = prepare_s;
    if (!s_.model.quiet) write_stderr(fmt::format("the device was ready after {:.3f} s", prepare_s));
    if (s_.json) HEARTH_TRY(write_stdout(line.dump() + "\n"));
    if (!s_.results.empty()) HEARTH_TRY(append_result(s_.results, line));
    return 0;
  }

 private:
  bool is_dummy() const { return s_.model.load_format == "dummy"; }

  // What a command does before its first step, part by part.
  Result<std::shared_ptr<const Model>> load(Times& times) const {
    Stopwatch watch;
    HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(found_.dir));
    times.open = watch.lap();
    HEARTH_TRY(Tokenizer::load(found_.dir));
    times.tokenizer = watch.lap();
    std::optional<Progress> progress;
    HEARTH_TRY_ASSIGN(auto model, Model::load(checkpoint, *ops_, options(progress), *pool_));
    times.weights = watch.lap();
    return model;
  }

  Result<std::shared_ptr<const Model>> make_dummy(Times& times) const {
    Stopwatch watch;
    const std::filesystem::path file = found_.dir.extension() == ".json" ? found_.dir : found_.dir / "config.json";
    HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(file));
    HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(json).with_context(file.string()));
    HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse_file(file));
    times.open = watch.lap();
    std::optional<Progress> progress;
    HEARTH_TRY_ASSIGN(auto model,
                      Model::dummy(config, *ops_, options(progress), DType::kBf16, 1, *pool_, &quantization));
    times.weights = watch.lap();
    return model;
  }

  ModelOptions options(std::optional<Progress>& progress) const {
    ModelOptions options;
    options.activation = activation_of(s_.model.dtype, s_.model.device);
    if (s_.model.quiet) return options;
    options.progress = [this, &progress](int64_t done, int64_t total) {
      if (!progress) progress.emplace(fmt::format("loading {}", found_.name), total, Progress::Unit::kBytes);
      progress->update(done);
    };
    return options;
  }

  nlohmann::json describe(const Model& model) const {
    nlohmann::json line = result_line("model.load", device_of(*ops_, pool_->size()), command_line(s_.context.args));
    line["config"] = found_.name;
    line["format"] = stored_format(model);
    line["bytes"] = model.weights().memory.size_bytes();
    line["load_format"] = s_.model.load_format;
    line["threads"] = pool_->size();
    if (!s_.note.empty()) line["note"] = s_.note;
    return line;
  }

  std::string row(const Model& model, const Times& times, int64_t number) const {
    const double gigabytes = static_cast<double>(model.weights().memory.size_bytes()) * 1e-9;
    return fmt::format("| {} {} | {:.2f} GB | {} | {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.2f} |\n",
                       found_.name, stored_format(model), gigabytes, ops_->backend, pool_->size(), number, times.open,
                       times.tokenizer, times.weights, times.all(), gigabytes / times.weights);
  }

  const BenchLoadSettings& s_;
  FoundModel found_;
  const OpTable* ops_ = nullptr;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

Command add_bench_load_command(CLI::App& bench, const CommandContext& context) {
  const auto s = std::make_shared<BenchLoadSettings>();
  s->context = context;
  CLI::App* command = bench.add_subcommand("load", "Time from a model's files to its first step.");
  command->fallthrough()->footer(kHelp);
  add_model_options(*command, s->model);
  add_setting(*command, kRepetitions, s->repetitions);
  constexpr const char* kReport = "Report";
  add_text(*command, "--results", "FILE", "Appends a line of JSON to FILE with date, commit, device and command.",
           s->results)
      ->group(kReport);
  add_text(*command, "--note", "TEXT", "A word on the circumstances, for that line.", s->note)->group(kReport);
  command->add_flag("--json", s->json, "Prints that line instead of the table.")->group(kReport);
  return {command, [s] { return BenchLoadRun(*s).run(); }};
}

}  // namespace hearth
