// SPDX-License-Identifier: Apache-2.0
// hearth bench ops: how fast each op of a backend is on the shapes of models, as a table and as lines of JSON. The main
// thread.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/json.h"
#include "hearth/cli/bench_common.h"
#include "hearth/cli/bench_ops.h"
#include "hearth/cli/bench_ops_session.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/eval_common.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/results.h"

namespace hearth {
namespace {

constexpr Setting<int64_t> kRounds{"-r,--rounds",
                                   "N",
                                   1,
                                   10'000,
                                   "",
                                   "Replays of a case's recording that are measured; where nothing is recorded and "
                                   "calls are slow fewer, at least 5."};
constexpr Setting<int64_t> kThreads{"--threads", "N", 0, 1024, "", "Threads of the CPU backend; 0 for one per core."};
constexpr Setting<int64_t> kTokens{"", "", 1, int64_t{1} << 20, "tokens", ""};
// A product with more work per byte than this is not the memory's to limit, on any device that hearth runs on.
constexpr double kMemoryBoundFlopsPerByte = 150;
// Logits are wanted of one row a sequence.
constexpr int64_t kMostLogitRows = 256;

constexpr const char* kOps[] = {"embedding",     "rmsnorm",   "linear",   "ffn",   "rope_table",
                                "rope_kv_write", "attention", "silu_mul", "sample"};

constexpr const char* kHelp =
    "Each op is called as a model calls it, each call behind the one before; on a GPU calls are replayed as one graph\n"
    "and timed there. Weights, keys and values take turns with copies of themselves, three times the cache in all. us\n"
    "is the median over the rounds; the floor is what memory allows if a call read and wrote its data and did nothing\n"
    "else, by the speed that the run itself measured (on a GPU that of a copy). It says nothing where arithmetic\n"
    "decides: there TFLOP/s do. Lists are separated by commas; an empty one leaves its cases out.\n\n"
    "Examples:\n"
    "  hearth bench ops --device cuda --results ops.jsonl\n"
    "  hearth bench ops bench/configs/qwen3-8b.json --device cuda --ops linear --formats bf16,fp8,int4 --tokens 1,16\n"
    "  hearth bench ops models/fable-82m --ops attention --decode 1x512,8x512 --prefill 1x512\n"
    "  echo make rmsnorm rows=1 hidden=4096 | hearth bench ops --device cuda --interactive\n";

// What is measured where no list is given.
struct DefaultLists {
  std::string tokens, formats, kv, decode, prefill;
};

DefaultLists default_lists(bool host, bool quick) {
  if (host && quick) return {"1", "bf16", "f32", "1x256", "1x128"};
  if (host) return {"1,8,32", "f32,bf16", "f32", "1x1024,8x1024", "1x512"};
  if (quick) return {"1,32,1024", "bf16,fp8", "bf16", "1x1024,32x4096", "1x4096"};
  return {"1,8,16,32,64,128,256,512,1024,4096", "bf16,fp8", "bf16", "1x1024,1x4096,8x4096,32x1024,32x4096,128x1024",
          "1x1024,4x1024,16x1024,1x4096,1x16384"};
}

struct BenchOpsSettings {
  CommandContext context;
  std::vector<std::string> configs;
  std::string device = "cpu", dtype = "auto", ops;
  std::string tokens, formats, kv, decode, prefill;
  CLI::Option *tokens_option = nullptr, *formats_option = nullptr, *kv_option = nullptr, *decode_option = nullptr,
              *prefill_option = nullptr;
  int64_t rounds = 21, threads = 0;
  std::string results, note;
  bool json = false, quick = false, quiet = false, interactive = false;
};

Result<AttentionShape> parse_attention(const char* flag, std::string_view text, bool decode) {
  const size_t cross = text.find('x');
  if (cross == std::string_view::npos)
    return invalid_argument("{}: '{}' has no 'x'; wanted BATCHxLENGTH, such as 8x1024", flag, text);
  AttentionShape shape{.decode = decode};
  HEARTH_TRY_ASSIGN(shape.batch, parse_number(text.substr(0, cross), kTokens).with_context(flag));
  HEARTH_TRY_ASSIGN(shape.length, parse_number(text.substr(cross + 1), kTokens).with_context(flag));
  return shape;
}

// The lists of the settings, checked.
struct Lists {
  std::vector<std::string_view> ops, formats;
  std::vector<KvFormatId> kv;
  std::vector<int64_t> tokens;
  std::vector<AttentionShape> attention;

  bool has(std::string_view op) const { return std::ranges::find(ops, op) != ops.end(); }
};

// Views of the settings' texts.
Result<Lists> parse_lists(const BenchOpsSettings& s) {
  Lists lists;
  HEARTH_TRY_ASSIGN(lists.ops, split_list("--ops", s.ops));
  for (const std::string_view op : lists.ops)
    if (std::ranges::find(kOps, op) == std::end(kOps))
      return invalid_argument("--ops: '{}' is unknown; wanted some of {}", op, fmt::join(kOps, ", "));
  if (s.ops.empty()) lists.ops.assign(std::begin(kOps), std::end(kOps));
  HEARTH_TRY_ASSIGN(lists.formats, split_list("--formats", s.formats));
  for (const std::string_view format : lists.formats)
    HEARTH_TRY(find_op_format(std::string(format)).with_context("--formats"));
  HEARTH_TRY_ASSIGN(const auto kv_names, split_list("--kv-formats", s.kv));
  for (const std::string_view name : kv_names) {
    const auto kv = kv_format_from_name(name);
    if (!kv)
      return invalid_argument("--kv-formats: '{}' is unknown; wanted f32, bf16, fp8, int4, int4-fireq, int4-saw", name);
    lists.kv.push_back(*kv);
  }
  HEARTH_TRY_ASSIGN(lists.tokens, parse_list("--tokens", s.tokens, kTokens));
  for (const bool decode : {true, false}) {
    const char* const flag = decode ? "--decode" : "--prefill";
    HEARTH_TRY_ASSIGN(const auto words, split_list(flag, decode ? s.decode : s.prefill));
    for (const std::string_view word : words) {
      HEARTH_TRY_ASSIGN(const AttentionShape shape, parse_attention(flag, word, decode));
      lists.attention.push_back(shape);
    }
  }
  return lists;
}

Result<std::vector<OpSizes>> read_sizes(const BenchOpsSettings& s) {
  std::vector<OpSizes> all;
  for (const std::string& typed : s.configs) {
    HEARTH_TRY_ASSIGN(const FoundModel found, find_model(typed, true));
    const auto file = found.dir.extension() == ".json" ? found.dir : found.dir / "config.json";
    HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(file));
    HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(json).with_context(file.string()));
    all.push_back(op_sizes(found.name, config));
  }
  if (all.empty()) all = usual_op_sizes();
  if (s.quick) all.resize(1);
  return all;
}

bool is_of_the_device(ErrorCode code) {
  return code == ErrorCode::kDeviceLost || code == ErrorCode::kUnavailable || code == ErrorCode::kInternal;
}

std::string number(double value) { return fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 1000 ? 1 : 0); }

class BenchOpsRun {
 public:
  explicit BenchOpsRun(BenchOpsSettings settings) : s_(std::move(settings)) {}

  Result<int> run() {
    HEARTH_TRY(check_output_file("--results", s_.results));
    HEARTH_TRY_ASSIGN(const OpTable* const ops, ops_of(s_.device));
    fill_defaults(ops->memory().is_host());
    HEARTH_TRY_ASSIGN(lists_, parse_lists(s_));
    HEARTH_TRY_ASSIGN(const std::vector<OpSizes> sizes, read_sizes(s_));
    ThreadPool pool(static_cast<int>(s_.threads));
    const SteadyClock clock;
    HEARTH_TRY_ASSIGN(const OpRig rig, OpRig::create(*ops, pool, clock, activation_of(s_.dtype, s_.device)));
    rig_ = &rig;
    device_ = device_of(*ops, pool.size());
    command_ = command_line(s_.context.args);
    HEARTH_TRY_ASSIGN(bytes_per_s_, rig.bytes_per_s());
    if (!s_.quiet)
      write_stderr(fmt::format("{}; memory is read with {:.0f} GB/s; its cache has {:.0f} MB", device_,
                               bytes_per_s_ * 1e-9, static_cast<double>(rig.memory().cache_bytes()) * 1e-6));
    if (s_.interactive) return answer_requests(rig);
    if (!s_.json)
      HEARTH_TRY(
          write_stdout("| op | config | format | shape | us, p10 to p90 | GB/s | TFLOP/s | of floor |\n"
                       "|---|---|---|---|---:|---:|---:|---:|\n"));
    const int64_t begin_ns = clock.now_ns();
    for (const OpSizes& one : sizes) HEARTH_TRY(run_sizes(one));
    if (measured_ == 0)
      return invalid_argument("no case: an empty list, or nothing that the {} backend has", ops->backend);
    if (!s_.quiet)
      write_stderr(
          fmt::format("{} cases in {:.1f} s", measured_, static_cast<double>(clock.now_ns() - begin_ns) * 1e-9));
    return 0;
  }

 private:
  void fill_defaults(bool host) {
    const DefaultLists usual = default_lists(host, s_.quick);
    const auto fill = [](const CLI::Option* option, std::string& field, const std::string& value) {
      if (option->count() == 0) field = value;
    };
    fill(s_.tokens_option, s_.tokens, usual.tokens);
    fill(s_.formats_option, s_.formats, usual.formats);
    fill(s_.kv_option, s_.kv, usual.kv);
    fill(s_.decode_option, s_.decode, usual.decode);
    fill(s_.prefill_option, s_.prefill, usual.prefill);
  }

  // What a request did wrong is its answer; what the next one would meet too ends the run.
  Result<int> answer_requests(const OpRig& rig) const {
    const auto say = [](const nlohmann::json& what) {
      return write_stdout(what.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    };
    OpSession session(rig, device_, command_, bytes_per_s_);
    HEARTH_TRY(say(session.greeting()));
    LineReader reader;
    for (std::string line; reader.read(line) == LineReader::Outcome::kLine;) {
      Result<nlohmann::json> answer = session.answer(line);
      HEARTH_TRY(say(answer ? *answer : nlohmann::json{{"error", answer.error().message}}));
      if (!answer && is_of_the_device(answer.error().code)) return std::move(answer).error();
    }
    return 0;
  }

  Status run_sizes(const OpSizes& sizes) {
    if (lists_.has("linear")) HEARTH_TRY(run_linears(sizes));
    if (lists_.has("ffn")) HEARTH_TRY(run_ffns(sizes));
    if (lists_.has("attention"))
      for (const KvFormatId kv : lists_.kv)
        for (const AttentionShape& shape : lists_.attention)
          HEARTH_TRY(measure(attention_case(*rig_, sizes, kv, shape)));
    if (lists_.has("rope_kv_write"))
      for (const KvFormatId kv : lists_.kv)
        for (const int64_t tokens : lists_.tokens) HEARTH_TRY(measure(rope_kv_write_case(*rig_, sizes, kv, tokens)));
    for (const int64_t tokens : lists_.tokens) {
      if (lists_.has("embedding")) HEARTH_TRY(measure(embedding_case(*rig_, sizes, tokens)));
      if (lists_.has("rope_table")) HEARTH_TRY(measure(rope_table_case(*rig_, sizes, tokens)));
      for (const bool rounded : {false, true}) {
        if (rounded && rig_->activation() == DType::kF32 && !rig_->memory().is_host()) continue;  // there is none
        if (lists_.has("rmsnorm")) HEARTH_TRY(measure(rmsnorm_case(*rig_, sizes, tokens, rounded)));
        if (lists_.has("silu_mul")) HEARTH_TRY(measure(silu_mul_case(*rig_, sizes, tokens, rounded)));
      }
      if (!lists_.has("sample") || tokens > kMostLogitRows) continue;
      for (const bool greedy : {true, false}) HEARTH_TRY(measure(sample_case(*rig_, sizes, tokens, greedy)));
    }
    return {};
  }

  Status run_linears(const OpSizes& sizes) {
    for (const LinearShape& shape : linear_shapes(sizes)) {
      // Another configuration may have had it.
      const std::pair key(shape.n, shape.k);
      if (std::ranges::find(done_, key) != done_.end()) continue;
      done_.push_back(key);
      for (const std::string_view format : lists_.formats) {
        HEARTH_TRY_ASSIGN(const auto bench, LinearBench::create(*rig_, sizes, shape, std::string(format)));
        if (!bench && !s_.quiet)
          write_stderr(fmt::format("{} {}: the {} backend has no linear for it and {}", shape.layer, format,
                                   rig_->ops().backend, dtype_name(rig_->activation())));
        if (!bench) continue;
        for (const int64_t tokens : lists_.tokens)
          if (!shape.to_logits || tokens <= kMostLogitRows) HEARTH_TRY(measure(bench->make(tokens)));
      }
    }
    return {};
  }

  Status run_ffns(const OpSizes& sizes) {
    for (const std::string_view format : lists_.formats) {
      HEARTH_TRY_ASSIGN(const auto bench, FfnBench::create(*rig_, sizes, std::string(format)));
      if (!bench) continue;
      for (const int64_t tokens : lists_.tokens) HEARTH_TRY(measure(bench->make(tokens)));
    }
    return {};
  }

  Status measure(MaybeCase made) {
    HEARTH_TRY_ASSIGN(const std::unique_ptr<OpCase> one, std::move(made));
    if (!one) return {};
    const std::string name = fmt::format("{} {} {}", one->bench, one->format, one->shape);
    HEARTH_TRY_ASSIGN(const OpTimes times, rig_->time(*one, s_.rounds).with_context(name));
    ++measured_;
    // The host's memory is not what was measured.
    const double speed = one->on_host && !rig_->memory().is_host() ? 0 : bytes_per_s_;
    const double floor_us = speed > 0 ? one->bytes / speed * 1e6 : 0;
    const bool by_memory = one->flops < kMemoryBoundFlopsPerByte * one->bytes;
    nlohmann::json line = result_line(one->bench, device_, command_);
    line.update(op_line(*one, speed, times.calls, times.recorded));
    line["us"] = times.us, line["us_p10"] = times.us_p10, line["us_p90"] = times.us_p90;
    line["gbps"] = one->bytes / times.us * 1e-3, line["rounds"] = times.rounds;
    if (one->flops > 0) line["tflops"] = one->flops / times.us * 1e-6;
    if (!s_.note.empty()) line["note"] = s_.note;
    if (!s_.results.empty()) HEARTH_TRY(append_result(s_.results, line));
    if (s_.json) return write_stdout(line.dump() + "\n");
    return write_stdout(
        fmt::format("| {} | {} | {} | {} | {}, {} to {} | {:.0f} | {} | {} |\n", one->bench.substr(3),
                    line.value("config", std::string()), one->format, one->shape, number(times.us),
                    number(times.us_p10), number(times.us_p90), one->bytes / times.us * 1e-3,
                    one->flops > 0 ? number(one->flops / times.us * 1e-6) : std::string("-"),
                    floor_us > 0 && by_memory ? fmt::format("{:.1f} %", 100 * floor_us / times.us) : std::string("-")));
  }

  BenchOpsSettings s_;
  Lists lists_;
  const OpRig* rig_ = nullptr;
  std::string device_, command_;
  double bytes_per_s_ = 0;
  int64_t measured_ = 0;
  std::vector<std::pair<int64_t, int64_t>> done_;  // linears, [n, k]
};

}  // namespace

Command add_bench_ops_command(CLI::App& bench, const CommandContext& context) {
  static constexpr const char* kDevices[] = {"cpu", "cuda", "cuda:N", "ref"};
  static constexpr const char* kDTypes[] = {"auto", "f32", "bf16"};
  const auto s = std::make_shared<BenchOpsSettings>();
  s->context = context;
  CLI::App* command = bench.add_subcommand("ops", "Speed of each op of a backend on the shapes of models.");
  command->fallthrough()->footer(kHelp);
  command
      ->add_option("CONFIG", s->configs,
                   "Models or their config.json whose shapes are measured (default: those of Llama-3-8B and "
                   "Llama-2-7B).")
      ->type_name("");
  constexpr const char* kCases = "Cases";
  add_choice(*command, "--device", kDevices, "What computes; cuda:N is GPU N, counted from 0.", s->device)
      ->group(kCases);
  add_choice(*command, "--dtype", kDTypes, "Type of the values between ops; auto is f32, on a GPU bf16.", s->dtype)
      ->group(kCases);
  add_text(*command, "--ops", "LIST", fmt::format("Some of {} (default: all).", fmt::join(kOps, ", ")), s->ops)
      ->group(kCases);
  s->tokens_option = add_text(*command, "--tokens", "LIST",
                              "Tokens of a call, but of attention (default: 1,8,32, on a GPU "
                              "1,8,16,32,64,128,256,512,1024,4096).",
                              s->tokens)
                         ->group(kCases);
  s->formats_option = add_text(*command, "--formats", "LIST",
                               "Formats of linears' weights (default: f32,bf16, on a GPU bf16,fp8).", s->formats)
                          ->group(kCases);
  s->kv_option =
      add_text(*command, "--kv-formats", "LIST", "Formats of keys and values (default: f32, on a GPU bf16).", s->kv)
          ->group(kCases);
  s->decode_option =
      add_text(*command, "--decode", "LIST",
               "BATCHxCONTEXT of attention with one new token a sequence (default: up to 128x1024 on a GPU).",
               s->decode)
          ->group(kCases);
  s->prefill_option =
      add_text(*command, "--prefill", "LIST",
               "BATCHxLENGTH of attention over whole prompts (default: up to 1x16384 on a GPU).", s->prefill)
          ->group(kCases);
  command->add_flag("--quick", s->quick, "Fewer shapes, of the first configuration alone.")->group(kCases);
  add_setting(*command, kRounds, s->rounds)->group(kCases);
  add_setting(*command, kThreads, s->threads)->group(kCases);
  command
      ->add_flag("--interactive", s->interactive,
                 "Makes and replays cases as lines on standard input ask for it (docs/guides/benchmarks.md), for "
                 "programs that take turns with it.")
      ->group(kCases);
  constexpr const char* kReport = "Report";
  add_text(*command, "--results,--out", "FILE",
           "Appends each case to FILE as a line of JSON with date, commit, device and command.", s->results)
      ->group(kReport);
  add_text(*command, "--note", "TEXT", "A word on the circumstances, for those lines.", s->note)->group(kReport);
  command->add_flag("--json", s->json, "Prints those lines instead of the table.")->group(kReport);
  command->add_flag("-q,--quiet", s->quiet, "Nothing on standard error.")->group(kReport);
  return {command, [s] { return BenchOpsRun(*s).run(); }};
}

}  // namespace hearth
