// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/bench_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "hearth/cli/bench_common.h"

namespace hearth {
namespace {

double deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / (count - 1));
}

// Times of one test.
class Measurement {
 public:
  Measurement(const ModelBench& bench, const ModelBenchTest& test, Runner& runner)
      : bench_(bench), test_(test), runner_(runner), vocab_(bench.model->config().vocab_size) {}

  // The context that every repetition begins with: computed once, and copied.
  Status begin() {
    if (test_.depth > 0) HEARTH_TRY(runner_.feed(0, random_tokens(test_.depth, vocab_, 1)));
    for (int64_t slot = 1; slot < test_.batch; ++slot) HEARTH_TRY(runner_.copy_context(0, slot));
    return {};
  }

  // One repetition of `tokens`. Appends to the times of its steps.
  Status repeat(int64_t tokens, std::vector<double>& step_us) {
    for (int64_t slot = 0; slot < test_.batch; ++slot) runner_.cut(slot, test_.depth);
    return test_.decode ? decode(tokens, step_us) : prefill(tokens, step_us);
  }

 private:
  // Prompts one behind the other, in steps that are full but for the last.
  Status prefill(int64_t tokens, std::vector<double>& step_us) {
    const std::vector<int32_t> ids = random_tokens(test_.batch * tokens, vocab_, 2);
    const int64_t step_tokens = runner_.options().chunk_tokens;
    std::vector<SlotTokens> feeds;
    const int64_t begin_ns = bench_.clock->now_ns();
    for (int64_t at = 0; at < std::ssize(ids);) {
      feeds.clear();
      for (int64_t room = step_tokens; room > 0 && at < std::ssize(ids);) {
        const int64_t count = std::min(room, tokens - at % tokens);
        feeds.push_back({.slot = at / tokens, .tokens = {&ids[static_cast<size_t>(at)], static_cast<size_t>(count)}});
        at += count, room -= count;
      }
      HEARTH_TRY(runner_.step(feeds));
    }
    step_us.push_back(static_cast<double>(bench_.clock->now_ns() - begin_ns) * 1e-3);
    return {};
  }

  // Each step is put behind the one before where the ids can stay on the device.
  Status decode(int64_t tokens, std::vector<double>& step_us) {
    std::vector<int32_t> ids = random_tokens(test_.batch, vocab_, 3), names(ids.size());
    for (size_t slot = 0; slot < names.size(); ++slot) names[slot] = -1 - static_cast<int32_t>(slot);
    std::vector<SlotTokens> feeds(ids.size());
    struct Sampling {
      std::vector<SampleRow> rows;
      std::vector<SampleResult> results;
    };
    std::array<Sampling, 2> turns;
    for (Sampling& turn : turns) {
      turn.rows.assign(ids.size(), {.params = {.temperature = 0}, .top_logprobs = kNoLogprobs});
      turn.results.resize(ids.size());
    }
    int64_t last_ns = bench_.clock->now_ns();
    const auto finish = [&](int64_t i) -> Status {
      HEARTH_TRY(runner_.finish());
      const int64_t now_ns = bench_.clock->now_ns();
      step_us.push_back(static_cast<double>(now_ns - std::exchange(last_ns, now_ns)) * 1e-3);
      for (size_t slot = 0; slot < ids.size(); ++slot)
        ids[slot] = turns[static_cast<size_t>(i % 2)].results[slot].token;
      return {};
    };
    for (int64_t i = 0; i < tokens; ++i) {
      Sampling& turn = turns[static_cast<size_t>(i % 2)];
      for (SampleRow& row : turn.rows) row.position = test_.depth + i + 1;
      const bool follows = i > 0 && runner_.can_follow(turn.rows);
      if (i > 0 && !follows) HEARTH_TRY(finish(i - 1));
      for (size_t slot = 0; slot < feeds.size(); ++slot)
        feeds[slot] = {.slot = static_cast<int64_t>(slot), .tokens = {follows ? &names[slot] : &ids[slot], 1}};
      HEARTH_TRY(runner_.start(feeds, turn.rows, turn.results));
      if (follows) HEARTH_TRY(finish(i - 1));
    }
    return finish(tokens - 1);
  }

  const ModelBench& bench_;
  const ModelBenchTest& test_;
  Runner& runner_;
  const int64_t vocab_;
};

}  // namespace

Result<ModelBenchResult> run_model_bench(const ModelBench& bench, const ModelBenchTest& test, double bytes_per_s) {
  // A tile of each kind is warmed up by whole prompts; of decode steps a few do.
  constexpr int64_t kWarmSteps = 3;
  const int64_t longest_step =
      test.decode ? std::max(test.batch, test.depth) : std::max(test.batch * test.tokens, test.depth);
  RunnerOptions options{.max_sequences = test.batch,
                        .max_context = test.depth + test.tokens,
                        .chunk_tokens = std::max(test.batch, std::min(bench.step_tokens, longest_step)),
                        .max_logit_rows = test.batch,
                        .kv_format = bench.kv_format,
                        .decode_batches = {},
                        .samples = test.decode};
  if (test.decode && bench.decode_graphs) options.decode_batches = {test.batch};
  HEARTH_TRY_ASSIGN(Runner runner, Runner::create(bench.model, options, *bench.pool));
  Measurement measurement(bench, test, runner);
  HEARTH_TRY(measurement.begin());
  std::vector<double> step_us, speeds;
  HEARTH_TRY(measurement.repeat(test.decode ? std::min(kWarmSteps, test.tokens) : test.tokens, step_us));
  step_us.clear();
  for (int64_t r = 0; r < bench.repetitions; ++r) {
    const size_t before = step_us.size();
    HEARTH_TRY(measurement.repeat(test.tokens, step_us));
    const double us = std::accumulate(step_us.begin() + static_cast<std::ptrdiff_t>(before), step_us.end(), 0.0);
    speeds.push_back(1e6 * static_cast<double>(test.tokens * test.batch) / us);
  }
  ModelBenchResult result{.tokens_per_s = quantile(speeds, 0.5),
                          .tokens_per_s_deviation = deviation(speeds),
                          .us = quantile(step_us, 0.5),
                          .us_p10 = quantile(step_us, 0.1),
                          .us_p90 = quantile(step_us, 0.9)};
  if (test.decode && bytes_per_s > 0) {
    const ModelConfig& c = bench.model->config();
    HEARTH_TRY_ASSIGN(const KvLayout layout, KvLayout::make(bench.kv_format, c.layers, c.kv_heads, c.head_dim, 16));
    // The context of the middle step.
    const double context = static_cast<double>(test.depth) + static_cast<double>(test.tokens + 1) / 2;
    const double batch = static_cast<double>(test.batch);
    const double bytes = static_cast<double>(bench.model->weights().bytes_per_token()) +
                         batch * context * static_cast<double>(layout.bytes_per_token());
    result.floor_tokens_per_s = batch * bytes_per_s / bytes;
  }
  return result;
}

Result<double> read_speed(const ModelBench& bench) {
  const Buffer& weights = bench.model->weights().memory;
  return read_speed(bench.model->ops().memory(), {weights.data(), static_cast<size_t>(weights.size_bytes())},
                    *bench.pool, *bench.clock);
}

int64_t count_parameters(const ModelConfig& c) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  int64_t layer = c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size;
  if (c.qkv_bias) layer += q + 2 * kv;
  if (c.o_bias) layer += c.hidden_size;
  if (c.mlp_bias) layer += 2 * c.intermediate_size + c.hidden_size;
  if (c.qk_norm) layer += 2 * c.head_dim;
  return c.layers * layer + c.hidden_size + c.vocab_size * c.hidden_size * (c.tie_word_embeddings ? 1 : 2);
}

}  // namespace hearth
