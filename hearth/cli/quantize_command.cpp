// SPDX-License-Identifier: Apache-2.0
// hearth quantize: a checkpoint in, a smaller one out that every other command runs.
#include <sys/resource.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/base/progress.h"
#include "hearth/checkpoint/file.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/results.h"
#include "hearth/quantize/pipeline.h"

namespace hearth {
namespace {

constexpr Setting<int64_t> kThreads{
    "--threads", "N", 0, 1024, "threads", "Threads that compute; 0 takes every CPU that the process may use."};
constexpr Setting<int64_t> kSamples{"--samples", "N", 1, int64_t{1} << 20, "windows", "Windows of the text to take."};
constexpr Setting<int64_t> kLength{"--length", "N", 1, int64_t{1} << 24, "tokens", "Tokens of a window."};
constexpr Setting<int64_t> kSeed{
    "--seed", "N",
    0,        (int64_t{1} << 53) - 1,
    "",       "Chooses the windows and starts the searches; the same seed gives the same bytes."};
constexpr Setting<int64_t> kBitvectors{"--bitvectors", "N", 2, 4, "", "sbvr: bits of a weight before its tables."};
constexpr Setting<int64_t> kLines{"--lines", "N", 1, 4096, "", "sbvr: coefficient lines of a matrix."};
constexpr Setting<double> kMaxBits{
    "--max-bits", "BITS", 2.01, 8, "", "sbvr without --lines: stored bits of a weight, all tables counted."};
constexpr Setting<double> kBits{"--bits", "BITS", 1,
                                16,       "",     "auto: stored bits of a weight that the linears may take."};
constexpr int64_t kMaxRuleBytes = int64_t{16} << 20;

struct QuantizeSettings {
  CommandContext context;
  std::string model, to, out;
  std::string method = "auto";
  std::string group_size = "128";
  bool asymmetric = false;
  int64_t bitvectors = 4;
  std::optional<int64_t> lines;
  std::optional<double> max_bits;
  std::optional<bool> awq;
  bool act_order = true, sequential = true;
  std::string kv = "auto";
  std::string kv_scales = "tensor";
  std::optional<bool> rotate_v;
  std::string keep, rules;
  std::optional<double> bits;
  std::string candidates = "int4,fp8,bf16";
  std::string calibration;
  int64_t samples = 128;
  std::optional<int64_t> length;
  int64_t seed = 0;
  std::string device = "cpu";
  int64_t threads = 0;
  std::string results;
  bool quiet = false;
};

// Sets a flag where it or its negation is given; CLI11 makes an optional one false where neither is.
std::function<void(int64_t)> given(std::optional<bool>& flag) {
  return [&flag](int64_t count) { flag = count > 0; };
}

Result<QuantizeOptions> options_of(const QuantizeSettings& s) {
  QuantizeOptions o;
  o.to = s.to;
  o.method = s.method;
  o.bits = s.bits.value_or(0);
  o.candidates.clear();
  for (std::string_view rest = s.candidates; !rest.empty();) {
    const size_t at = rest.find(',');
    o.candidates.emplace_back(rest.substr(0, at));
    rest.remove_prefix(at == rest.npos ? rest.size() : at + 1);
  }
  o.group_size = s.group_size == "channel" ? 0 : std::stoll(s.group_size);
  o.asymmetric = s.asymmetric;
  o.bitvectors = s.bitvectors;
  o.lines = s.lines.value_or(0);
  o.max_bits = s.max_bits;
  o.awq = s.awq;
  o.act_order = s.act_order;
  o.sequential = s.sequential;
  if (s.kv != "auto") o.kv = kv_format_from_name(s.kv);
  o.kv_scale_per_head = s.kv_scales == "head";
  o.rotate_v = s.rotate_v;
  o.seed = static_cast<uint64_t>(s.seed);
  HEARTH_TRY_ASSIGN(o.ops, ops_of(s.device));
  if (o.ops->prepare) HEARTH_TRY(o.ops->prepare());
  if (!s.rules.empty()) {
    HEARTH_TRY_ASSIGN(const std::string text, read_text_file(s.rules, kMaxRuleBytes).with_context("--rules"));
    HEARTH_TRY_ASSIGN(o.rules, parse_rule_file(text).with_context(s.rules));
  }
  HEARTH_TRY_ASSIGN(std::vector<FormatRule> kept, parse_format_rules(s.keep).with_context("--keep"));
  for (FormatRule& rule : kept) o.rules.push_back(std::move(rule));
  if (!s.calibration.empty())
    o.calibration =
        CalibrationOptions{.file = s.calibration, .samples = s.samples, .length = s.length.value_or(0), .seed = o.seed};
  return o;
}

int64_t peak_rss_bytes() {
  struct rusage usage {};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{1024} * usage.ru_maxrss : 0;
}

std::string megabytes(int64_t bytes) { return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6); }

Status write_result(const QuantizeSettings& s, const FoundModel& model, const QuantizeSummary& summary,
                    const OpTable& ops, int threads, double seconds) {
  if (s.results.empty()) return {};
  nlohmann::json line = result_line("quantize", device_of(ops, threads), command_line(s.context.args));
  line["model"] = model.name;
  line["format"] = s.to;
  line["method"] = s.method;
  line["kv"] = s.kv;
  line["bits_per_weight"] = summary.bits_per_weight;
  line["weights"] = summary.weights;
  if (summary.lm_head_bits > 0) line["lm_head_bits_per_weight"] = summary.lm_head_bits;
  line["rel_error"] = summary.rel_error;
  line["calibration_tokens"] = summary.calibration_tokens;
  line["activation_bytes"] = summary.activation_bytes;
  line["output_bytes"] = summary.output_bytes;
  line["resumed_shards"] = summary.resumed_shards;
  line["seconds"] = seconds;
  line["peak_rss_bytes"] = peak_rss_bytes();
  line["threads"] = threads;
  return append_result(s.results, line);
}

Result<int> run_quantize(const QuantizeSettings& s) {
  HEARTH_TRY_ASSIGN(const QuantizeOptions options, options_of(s));
  HEARTH_TRY(check_options(options));
  HEARTH_TRY_ASSIGN(const FoundModel model, find_model(s.model));
  ThreadPool pool(static_cast<int>(s.threads));
  const InterruptGuard interrupt;
  std::optional<Progress> progress;
  QuantizeControl control{.progress = {}, .note = {}, .stop = &interrupt.flag()};
  if (!s.quiet) {
    control.progress = [&](int64_t done, int64_t total) {
      if (!progress) progress.emplace(fmt::format("quantizing {}", model.name), total, Progress::Unit::kItems);
      progress->update(done);
    };
    control.note = [&](std::string_view text) { write_stderr(fmt::format("hearth: {}", text)); };
  }
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  HEARTH_TRY_ASSIGN(const QuantizeSummary summary, quantize_model(model.dir, s.out, options, pool, control));
  if (progress) progress->finish();
  const double seconds = static_cast<double>(clock.now_ns() - begin_ns) * 1e-9;
  if (!s.quiet) {
    write_stderr(fmt::format(
        "hearth: {}: {} linears{} at {:.3f} bits a weight, relative error {:.3g}{}", s.out, summary.modules,
        summary.kept > 0 ? fmt::format(" and {} that stay as they were", summary.kept) : "", summary.bits_per_weight,
        summary.rel_error,
        summary.lm_head_bits > 0 ? fmt::format("; lm_head at {:.3f} bits a weight", summary.lm_head_bits) : ""));
    const bool on_host = options.ops->memory().is_host();
    write_stderr(fmt::format("hearth: {} of weights in {:.1f} s, at most {} of memory, {} {}activations{}",
                             megabytes(summary.output_bytes), seconds, megabytes(peak_rss_bytes()),
                             megabytes(summary.activation_bytes), on_host ? "of them " : "of ",
                             on_host ? "" : fmt::format(" in {} memory", options.ops->memory().name())));
  }
  HEARTH_TRY(write_result(s, model, summary, *options.ops, pool.size(), seconds));
  return 0;
}

void add_format_options(CLI::App& command, QuantizeSettings& s) {
  static constexpr const char* kGroups[] = {"128", "64", "32", "channel"};
  static constexpr const char* kKv[] = {"auto", "bf16", "fp8", "int4", "int4-fireq", "int4-saw"};
  static constexpr const char* kKvScales[] = {"tensor", "head"};
  constexpr const char* kGroup = "Format";
  add_text(command, "--to", "FORMAT",
           "Of the linears' weights: fp8, int4, fireq, fireq-c4, sbvr, bf16 for a KV format alone, or "
           "auto: for each linear what --bits has room for, by what it does to the output.",
           s.to)
      ->required()
      ->group(kGroup);
  add_setting(command, kBits, s.bits, "none")->group(kGroup);
  add_text(command, "--candidates", "FORMATS", "auto: what to choose from (default: int4,fp8,bf16).", s.candidates)
      ->group(kGroup);
  add_choice(command, "--group-size", kGroups, "int4 and fireq: columns that share a scale.", s.group_size)
      ->group(kGroup);
  command.add_flag("--asymmetric", s.asymmetric, "int4: a zero point for each scale.")->group(kGroup);
  add_setting(command, kBitvectors, s.bitvectors)->group(kGroup);
  add_setting(command, kLines, s.lines, "as many as --max-bits allows")->group(kGroup);
  add_setting(command, kMaxBits, s.max_bits, "--bitvectors and 0.2")->group(kGroup);
  add_choice(command, "--kv", kKv, "The KV cache that the checkpoint asks for; auto leaves it to who runs it.", s.kv)
      ->group(kGroup);
  add_choice(command, "--kv-scales", kKvScales,
             "--kv fp8: one scale for all keys of a layer and one for its values, or one of each for every KV head.",
             s.kv_scales)
      ->group(kGroup);
  command
      .add_flag_function(
          "--rotate-v,!--no-rotate-v", given(s.rotate_v),
          "Rotates the values of each head, for a KV cache of few bits (default: where calibration says that it "
          "helps).")
      ->group(kGroup);
  add_text(command, "--keep", "RULES",
           "Modules with another format: lm_head=bf16,layers.0=fp8,down_proj=bf16. A rule names whole components of a "
           "module's name, * stands for anything in one; the last that matches counts.",
           s.keep)
      ->group(kGroup);
  add_text(command, "--rules", "FILE", "The same, a rule a line; --keep comes after it.", s.rules)->group(kGroup);
}

void add_method_options(CLI::App& command, QuantizeSettings& s) {
  static constexpr const char* kMethods[] = {"auto", "rtn", "clip", "gptq", "authors"};
  constexpr const char* kGroup = "Method";
  add_choice(command, "--method", kMethods,
             "rtn rounds to nearest, clip searches scales, gptq also feeds rounding errors on; auto is gptq, and clip "
             "for fp8. authors is the published encoder of SBVR, for comparison: some 50 ms for most groups.",
             s.method)
      ->group(kGroup);
  command
      .add_flag_function(
          "--awq,!--no-awq", given(s.awq),
          "Scales the inputs of linears as AWQ does, where that helps (default: with gptq, inputs that have outliers).")
      ->group(kGroup);
  command
      .add_flag("--act-order,!--no-act-order", s.act_order, "gptq: the columns with the largest input first (default).")
      ->group(kGroup);
  command
      .add_flag("--sequential,!--no-sequential", s.sequential,
                "gptq: a linear's input is what the linears before it give when they are quantized (default).")
      ->group(kGroup);
  add_text(command, "--calibration", "FILE",
           "Text that stands for what the model will read: plain, or JSON lines with the string text.", s.calibration)
      ->group(kGroup);
  add_setting(command, kSamples, s.samples)->group(kGroup);
  add_setting(command, kLength, s.length, "the model's context, at most 2048")->group(kGroup);
  add_setting(command, kSeed, s.seed)->group(kGroup);
}

}  // namespace

Command add_quantize_command(CLI::App& app, const CommandContext& context) {
  const auto s = std::make_shared<QuantizeSettings>();
  s->context = context;
  CLI::App* command = app.add_subcommand("quantize", "Makes a smaller checkpoint of a model.");
  command
      ->add_option("MODEL", s->model,
                   "A folder in the Hugging Face layout, or org/name (org/name@revision) in the Hugging Face cache.")
      ->type_name("")
      ->required();
  add_text(*command, "-o,--out", "DIR",
           "The new folder. One with an unfinished run of the same arguments is gone on with.", s->out)
      ->required();
  add_format_options(*command, *s);
  add_method_options(*command, *s);
  static constexpr const char* kDevices[] = {"cpu", "cuda", "cuda:N", "ref"};
  add_choice(*command, "--device", kDevices,
             "What the calibration's text goes through the model on: cpu; cuda, the first GPU; cuda:N, GPU N; or ref, "
             "plain loops in double precision. Weights are encoded on the CPU.",
             s->device);
  add_setting(*command, kThreads, s->threads);
  add_text(*command, "--results", "FILE", "Appends a line of JSON with time, memory and errors to FILE.", s->results);
  command->add_flag("-q,--quiet", s->quiet, "No progress and no statistics on standard error.");
  command->footer(
      "lm_head and the embedding stay as they are, unless a rule names lm_head. quantize_report.jsonl in DIR has a "
      "line\n"
      "for each linear. Ctrl-C or a kill loses at most one layer's work: the same command goes on there.\n"
      "\nExamples:\n"
      "  hearth quantize models/fable-13m --to fp8 -o fable-fp8\n"
      "  hearth quantize models/fable-13m --to int4 --calibration books.jsonl -o fable-int4\n"
      "  hearth quantize models/fable-13m --to sbvr --calibration books.jsonl --keep layers.0=fp8 -o fable-sbvr\n");
  return {command, [s] { return run_quantize(*s); }};
}

}  // namespace hearth
