// SPDX-License-Identifier: Apache-2.0
// One model's prompts beside another model's decode steps on one GPU, each with a stream of its own, against the same
// work one after the other: whether a GPU does more where both are under way at once.
//   beside_bench PREFILL_CONFIG.json DECODE_CONFIG.json [--batch N] [--depth N] [--chunk N] [--prompt N] [--prompts N]
// Dummy weights, KV in BF16. Prompts of --prompt tokens in steps of --chunk; decode steps of --batch sequences behind
// --depth tokens.
#include <atomic>
#include <cstdio>
#include <latch>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/checkpoint/json.h"
#include "hearth/model/runner.h"

namespace hearth {
namespace {

struct Args {
  std::string prefill, decode;
  int64_t batch = 32, depth = 1024, chunk = 512, prompt = 4096, prompts = 6;
};

Result<std::shared_ptr<const Model>> make_model(const std::string& path, uint64_t seed, ThreadPool& pool) {
  HEARTH_TRY_ASSIGN(const nlohmann::json json, read_json_object(path));
  HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(json));
  std::optional<Quantization> quantization;
  if (json.contains("quantization_config")) {
    HEARTH_TRY_ASSIGN(quantization, Quantization::parse_file(path));
  }
  const OpTable* const ops = cuda_ops();
  if (ops == nullptr) return unsupported("beside_bench: this program has no CUDA backend");
  return Model::dummy(config, *ops, {.activation = DType::kBf16}, DType::kBf16, seed, pool,
                      quantization ? &*quantization : nullptr);
}

// A model that computes one thing over and over.
class Side {
 public:
  Side(Runner runner, const Args& args, bool decodes) : runner_(std::move(runner)), args_(args), decodes_(decodes) {}

  Status begin() {
    if (!decodes_) return prompt();
    HEARTH_TRY(runner_.feed(0, std::vector<int32_t>(static_cast<size_t>(args_.depth), 5)));
    for (int64_t slot = 1; slot < args_.batch; ++slot) HEARTH_TRY(runner_.copy_context(0, slot));
    return step();
  }
  // One prompt, or one decode step.
  Status once() { return decodes_ ? step() : prompt(); }

 private:
  Status prompt() {
    runner_.cut(0, 0);
    HEARTH_TRY(runner_.feed(0, std::vector<int32_t>(static_cast<size_t>(args_.prompt), 7)));
    return {};
  }
  Status step() {
    std::vector<int32_t> ids(static_cast<size_t>(args_.batch), 9);
    std::vector<SlotTokens> feeds;
    std::vector<SampleRow> rows(ids.size(), {.params = {.temperature = 0}, .top_logprobs = kNoLogprobs});
    std::vector<SampleResult> results(ids.size());
    for (int64_t slot = 0; slot < args_.batch; ++slot) {
      runner_.cut(slot, args_.depth);
      rows[static_cast<size_t>(slot)].position = args_.depth + 1;
      feeds.push_back({.slot = slot, .tokens = {&ids[static_cast<size_t>(slot)], 1}});
    }
    return runner_.step_and_sample(feeds, rows, results);
  }

  Runner runner_;
  const Args& args_;
  const bool decodes_;
};

Status run(const Args& args) {
  const SteadyClock clock;
  ThreadPool pool(8);
  HEARTH_TRY_ASSIGN(const auto first, make_model(args.prefill, 1, pool));
  HEARTH_TRY_ASSIGN(const auto second, make_model(args.decode, 2, pool));
  ThreadPool prefill_pool(1), decode_pool(1);
  HEARTH_TRY_ASSIGN(
      Runner prefill_runner,
      Runner::create(
          first,
          {.max_context = args.prompt, .chunk_tokens = args.chunk, .max_logit_rows = 1, .kv_format = KvFormatId::kBf16},
          prefill_pool));
  HEARTH_TRY_ASSIGN(Runner decode_runner, Runner::create(second,
                                                         {.max_sequences = args.batch,
                                                          .max_context = args.depth + 16,
                                                          .chunk_tokens = std::max(args.batch, args.depth),
                                                          .max_logit_rows = args.batch,
                                                          .kv_format = KvFormatId::kBf16,
                                                          .decode_batches = {args.batch},
                                                          .samples = true},
                                                         decode_pool));
  Side prompts(std::move(prefill_runner), args, false), steps(std::move(decode_runner), args, true);
  HEARTH_TRY(prompts.begin());
  HEARTH_TRY(steps.begin());

  const auto seconds_of = [&](Side& side, int64_t times) -> Result<double> {
    const int64_t begin_ns = clock.now_ns();
    for (int64_t i = 0; i < times; ++i) HEARTH_TRY(side.once());
    return static_cast<double>(clock.now_ns() - begin_ns) * 1e-9 / static_cast<double>(times);
  };
  HEARTH_TRY_ASSIGN(const double prompt_s, seconds_of(prompts, args.prompts));
  HEARTH_TRY_ASSIGN(const double step_s, seconds_of(steps, 50));

  std::latch both(2);
  std::atomic<bool> done = false;
  Status prompts_ended, steps_ended;
  int64_t count = 0;
  double together_s = 0;
  std::thread decoder([&] {
    both.arrive_and_wait();
    while (!done.load() && steps_ended) {
      steps_ended = steps.once();
      ++count;
    }
  });
  both.arrive_and_wait();
  const int64_t begin_ns = clock.now_ns();
  for (int64_t i = 0; i < args.prompts && prompts_ended; ++i) prompts_ended = prompts.once();
  together_s = static_cast<double>(clock.now_ns() - begin_ns) * 1e-9;
  done = true;
  decoder.join();
  HEARTH_TRY(prompts_ended);
  HEARTH_TRY(steps_ended);
  const double turns_s = prompt_s * static_cast<double>(args.prompts) + step_s * static_cast<double>(count);
  fmt::print("alone: a prompt {:.2f} ms, a decode step {:.2f} ms\n", prompt_s * 1e3, step_s * 1e3);
  fmt::print("at once: a prompt {:.2f} ms, a decode step {:.2f} ms; {} prompts and {} steps in {:.1f} ms\n",
             together_s / static_cast<double>(args.prompts) * 1e3, together_s / static_cast<double>(count) * 1e3,
             args.prompts, count, together_s * 1e3);
  fmt::print("one after the other the same takes {:.1f} ms: {:.3f} times as long\n", turns_s * 1e3,
             turns_s / together_s);
  return {};
}

int main_of(std::span<char*> words) {
  Args args;
  std::vector<std::string> files;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string word = words[i];
    const std::pair<const char*, int64_t*> options[] = {{"--batch", &args.batch},
                                                        {"--depth", &args.depth},
                                                        {"--chunk", &args.chunk},
                                                        {"--prompt", &args.prompt},
                                                        {"--prompts", &args.prompts}};
    bool is_option = false;
    for (const auto& [name, value] : options)
      if (word == name && i + 1 < words.size()) is_option = true, *value = std::atoll(words[++i]);
    if (!is_option) files.push_back(word);
  }
  if (files.size() != 2 || std::min({args.batch, args.depth, args.chunk, args.prompt, args.prompts}) < 1) {
    fmt::print(stderr, "beside_bench: two configurations wanted, and numbers of at least 1\n");
    return 2;
  }
  args.prefill = files[0], args.decode = files[1];
  const Status ended = run(args);
  if (ended) return 0;
  fmt::print(stderr, "beside_bench: {}\n", ended.error().message);
  return 1;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_of({argv + 1, static_cast<size_t>(argc - 1)}); }
