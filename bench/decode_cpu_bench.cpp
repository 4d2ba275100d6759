// SPDX-License-Identifier: Apache-2.0
// Decode speed on the CPU against the floor: one token through the whole model, alternated with a
// read-only sum over exactly the weight bytes that the token reads, by the same thread pool.
//   decode_cpu_bench MODEL_DIR | --dummy CONFIG.json [--rounds N] [--context N] [--threads N]
//                    [--dtype f32|bf16] [--jsonl FILE]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/json.h"
#include "hearth/eval/results.h"
#include "hearth/kernels/cpu/read_sum.h"
#include "hearth/model/runner.h"

#include <nlohmann/json.hpp>

namespace hearth {
namespace {

struct Args {
  std::string model;
  std::string dummy;
  std::string jsonl;
  int rounds = 60;
  int context = 128;
  int threads = 0;
  DType dtype = DType::kF32;
};

std::vector<std::span<const std::byte>> weight_spans(const ModelWeights& weights) {
  std::vector<std::span<const std::byte>> spans;
  const auto add = [&](const ConstTensorView& view) {
    if (view) spans.emplace_back(static_cast<const std::byte*>(view.data), static_cast<size_t>(view.size_bytes()));
  };
  const auto add_linear = [&](const Linear& linear) {
    for (const LinearWeight& part : linear.parts)
      for (const ConstTensorView* view :
           {&part.codes, &part.scales, &part.zeros, &part.lines, &part.line_scales, &part.line_index, &part.bias})
        add(*view);
  };
  for (const LayerWeights& layer : weights.layers) {
    const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    for (const ConstTensorView* norm : {&layer.input_norm, &layer.post_attention_norm, &layer.q_norm, &layer.k_norm})
      add(*norm);
    for (const Linear* linear : {&layer.qkv, &layer.o, &ffn.gate_up, &ffn.down}) add_linear(*linear);
  }
  add(weights.final_norm);
  add_linear(weights.lm_head);
  return spans;
}

Result<std::shared_ptr<const Model>> load(const Args& args, ThreadPool& pool) {
  const ModelOptions options{.activation = args.dtype};
  if (!args.dummy.empty()) {
    HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(args.dummy));
    HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(json));
    return Model::dummy(config, cpu_ops(), options, DType::kBf16, 1, pool);
  }
  HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(args.model));
  return Model::load(checkpoint, cpu_ops(), options, pool);
}

double quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

Status run(const Args& args, const std::string& command) {
  ThreadPool pool(args.threads);
  HEARTH_TRY_ASSIGN(const std::shared_ptr<const Model> model, load(args, pool));
  const KvFormatId kv = args.dtype == DType::kF32 ? KvFormatId::kF32 : KvFormatId::kBf16;
  HEARTH_TRY_ASSIGN(
      Runner runner,
      Runner::create(model, {.max_context = args.context + 1, .max_logit_rows = 1, .kv_format = kv}, pool));
  std::vector<int32_t> prompt(static_cast<size_t>(args.context));
  for (size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = static_cast<int32_t>((i * 31 + 7) % static_cast<size_t>(model->config().vocab_size));
  HEARTH_TRY(runner.feed(0, prompt));

  const std::vector<std::span<const std::byte>> spans = weight_spans(model->weights());
  int64_t bytes = 0;
  for (const auto& span : spans) bytes += static_cast<int64_t>(span.size());
  HEARTH_CHECK(bytes == model->weights().bytes_per_token(), "{} bytes in spans, {} per token", bytes,
               model->weights().bytes_per_token());

  const SteadyClock clock;
  std::vector<double> decode_us, sum_us, ratios;
  volatile uint64_t sink = 0;
  constexpr int kWarmup = 3;
  for (int round = 0; round < args.rounds + kWarmup; ++round) {
    int64_t start = clock.now_ns();
    sink = sink + read_sum(spans, pool);
    const double sum = static_cast<double>(clock.now_ns() - start) * 1e-3;
    start = clock.now_ns();
    HEARTH_TRY(runner.feed(0, {prompt.data(), 1}));
    const double decode = static_cast<double>(clock.now_ns() - start) * 1e-3;
    runner.cut(0, args.context);
    if (round < kWarmup) continue;
    sum_us.push_back(sum);
    decode_us.push_back(decode);
    ratios.push_back(sum / decode);
  }
  const double decode = quantile(decode_us, 0.5), gbps = static_cast<double>(bytes) / decode * 1e-3;
  std::printf("%s: %.1f MB of weights a token, %d threads, context %d, %zu rounds\n",
              args.dummy.empty() ? args.model.c_str() : args.dummy.c_str(), static_cast<double>(bytes) * 1e-6,
              pool.size(), args.context, ratios.size());
  std::printf("  decode   %10.1f us median (p10 %.1f, p90 %.1f)  %.1f tokens/s  %.1f GB/s\n", decode,
              quantile(decode_us, 0.1), quantile(decode_us, 0.9), 1e6 / decode, gbps);
  std::printf("  read sum %10.1f us median (p10 %.1f, p90 %.1f)  %.1f GB/s\n", quantile(sum_us, 0.5),
              quantile(sum_us, 0.1), quantile(sum_us, 0.9), static_cast<double>(bytes) / quantile(sum_us, 0.5) * 1e-3);
  std::printf("  ratio    %10.3f median (p10 %.3f, p90 %.3f)\n", quantile(ratios, 0.5), quantile(ratios, 0.1),
              quantile(ratios, 0.9));
  if (args.jsonl.empty()) return {};
  nlohmann::json line = result_line("model.decode", cpu_device(pool.size()), command);
  line["config"] = args.dummy.empty() ? std::filesystem::path(args.model).filename().string()
                                      : std::filesystem::path(args.dummy).stem().string();
  line["format"] = to_string(model->weights().layers.front().qkv.parts.front().format);
  line["lm_head"] = to_string(model->weights().lm_head.parts.front().format);
  line["kv"] = std::string(kv_format_name(kv));
  line["batch"] = 1;
  line["context"] = args.context;
  line["tokens_per_s"] = 1e6 / decode;
  line["floor_tokens_per_s"] = 1e6 / quantile(sum_us, 0.5);
  line["ratio_median"] = quantile(ratios, 0.5);
  line["ratio_p10"] = quantile(ratios, 0.1);
  line["ratio_p90"] = quantile(ratios, 0.9);
  line["rounds"] = ratios.size();
  return append_result(args.jsonl, line);
}

Result<Args> parse(int argc, char** argv) {
  Args args;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (!flag.starts_with("--")) {
      args.model = flag;
      continue;
    }
    if (i + 1 >= argc) return invalid_argument("{} needs a value", flag);
    const std::string value = argv[++i];
    if (flag == "--dummy")
      args.dummy = value;
    else if (flag == "--jsonl")
      args.jsonl = value;
    else if (flag == "--rounds")
      args.rounds = std::max(1, std::atoi(value.c_str()));
    else if (flag == "--context")
      args.context = std::max(1, std::atoi(value.c_str()));
    else if (flag == "--threads")
      args.threads = std::atoi(value.c_str());
    else if (flag == "--dtype")
      args.dtype = value == "bf16" ? DType::kBf16 : DType::kF32;
    else
      return invalid_argument("unknown flag {}", flag);
  }
  if (args.model.empty() == args.dummy.empty())
    return invalid_argument("wanted either MODEL_DIR or --dummy CONFIG.json");
  return args;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  using namespace hearth;
  auto args = parse(argc, argv);
  Status status;
  if (args) {
    const std::vector<const char*> words(argv, argv + argc);
    status = run(*args, command_line(words));
  } else {
    status = args.error();
  }
  if (!status) {
    std::fprintf(stderr, "decode_cpu_bench: error: %s\n", status.error().message.c_str());
    return exit_code(status.error().code);
  }
}
