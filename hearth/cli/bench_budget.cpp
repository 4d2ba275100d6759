// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/bench_budget.h"

#include <algorithm>
#include <array>

#include "hearth/base/random.h"
#include "hearth/cli/bench_common.h"

namespace hearth {
namespace {

constexpr int64_t kRounds = 20, kCalledSteps = 20, kWarmSteps = 3;

// What a part's calls read, write and compute in a step of `tokens` tokens of which `rows` get logits.
class PartWork {
 public:
  PartWork(const Model& model, const KvLayout& kv, const ModelBenchTest& test)
      : model_(model),
        c_(model.config()),
        w_(model.weights()),
        kv_(kv),
        test_(test),
        act_(static_cast<double>(dtype_bytes(model.activation(), 1))),
        tokens_(static_cast<double>(test.batch * (test.decode ? 1 : test.tokens))),
        rows_(static_cast<double>(test.batch)),
        layers_(static_cast<double>(c_.layers)) {}

  void add_to(StepPart part, BudgetRow& row) const {
    const auto hidden = static_cast<double>(c_.hidden_size), ffn = static_cast<double>(c_.intermediate_size);
    const auto q = static_cast<double>(c_.heads * c_.head_dim), kv = static_cast<double>(c_.kv_heads * c_.head_dim);
    const double kv_bytes = static_cast<double>(kv_.bytes_per_token());  // of all layers
    switch (part) {
      case StepPart::kEmbedding:
        row.bytes = tokens_ * hidden * (act_ + static_cast<double>(dtype_bytes(w_.embedding.dtype, 1))) +
                    2 * rows_ * hidden * act_;
        break;
      case StepPart::kRopeTable: row.bytes = tokens_ * static_cast<double>(c_.head_dim) * 4; break;
      case StepPart::kNorm:
        row.bytes = (2 * layers_ * tokens_ + 2 * rows_) * hidden * act_;
        for (int64_t layer = 0; layer < c_.layers; ++layer)
          row.bytes += tokens_ * (input_bytes(layer, StepPart::kQkv) + input_bytes(layer, StepPart::kGateUp));
        break;
      case StepPart::kRopeKvWrite: row.bytes = layers_ * tokens_ * (2 * q + 2 * kv) * act_ + tokens_ * kv_bytes; break;
      case StepPart::kAttention: {
        const auto depth = static_cast<double>(test_.depth), n = static_cast<double>(test_.tokens);
        const double context = depth + (test_.decode ? 1 : n);
        row.bytes = rows_ * context * kv_bytes + 2 * layers_ * tokens_ * q * act_;
        // Of a prompt, each token sees those before it.
        row.flops = 4 * layers_ * q * (test_.decode ? tokens_ * context : tokens_ * (depth + n / 2));
        break;
      }
      case StepPart::kSiluMul:
        row.bytes = 2 * layers_ * tokens_ * ffn * act_;
        for (int64_t layer = 0; layer < c_.layers; ++layer) row.bytes += tokens_ * input_bytes(layer, StepPart::kDown);
        break;
      case StepPart::kQkv:
      case StepPart::kO:
      case StepPart::kGateUp:
      case StepPart::kDown:
        for (int64_t layer = 0; layer < c_.layers; ++layer)
          add(linear_of(layer, part), tokens_, input_bytes(layer, part),
              act_ * (part == StepPart::kO || part == StepPart::kDown ? 2 : 1), row);
        break;
      case StepPart::kLmHead: add(w_.lm_head, rows_, static_cast<double>(w_.lm_head.k()) * act_, 4, row); break;
    }
  }

 private:
  const Linear& linear_of(int64_t layer, StepPart part) const {
    const LayerWeights& weights = w_.layers[static_cast<size_t>(layer)];
    if (part == StepPart::kQkv) return weights.qkv;
    if (part == StepPart::kO) return weights.o;
    const DenseFfn& ffn = std::get<DenseFfn>(weights.ffn);
    return part == StepPart::kGateUp ? ffn.gate_up : ffn.down;
  }
  // What a linear is given of a token: values, or codes and their scale where the op in front of it rounds.
  double input_bytes(int64_t layer, StepPart part) const {
    const BlockOps& ops = model_.layer_ops(layer);
    const ActFormat act = part == StepPart::kQkv      ? ops.qkv_input
                          : part == StepPart::kGateUp ? ops.gate_up_input
                          : part == StepPart::kDown   ? ops.down_input
                                                      : ActFormat::kNative;
    const auto k = static_cast<double>(linear_of(layer, part).k());
    return act == ActFormat::kNative ? k * act_ : k + 4;
  }
  // `out_bytes`: of an output of a token, the residual that it is added to included.
  static void add(const Linear& linear, double tokens, double in_bytes, double out_bytes, BudgetRow& row) {
    const auto n = static_cast<double>(linear.n()), k = static_cast<double>(linear.k());
    row.bytes += static_cast<double>(linear.weight_bytes()) + tokens * (in_bytes + n * out_bytes);
    row.flops += 2 * tokens * n * k;
  }

  const Model& model_;
  const ModelConfig& c_;
  const ModelWeights& w_;
  const KvLayout& kv_;
  const ModelBenchTest& test_;
  const double act_, tokens_, rows_, layers_;
};

BudgetRow row_of(std::string part, int64_t calls, const std::vector<double>& us) {
  return {.part = std::move(part),
          .calls = calls,
          .us = quantile(us, 0.5),
          .us_p10 = quantile(us, 0.1),
          .us_p90 = quantile(us, 0.9)};
}

}  // namespace

Result<Budget> run_budget(const ModelBench& bench, const ModelBenchTest& test) {
  if (!test.decode && test.batch * test.tokens > bench.step_tokens)
    return invalid_argument("a budget of prompts of {} tokens; wanted at most the {} of a step",
                            test.batch * test.tokens, bench.step_tokens);
  const ModelConfig& c = bench.model->config();
  RunnerOptions options{.max_sequences = test.batch,
                        .max_context = test.depth + test.tokens,
                        .chunk_tokens = std::max({test.batch, test.batch * (test.decode ? 1 : test.tokens),
                                                  std::min(bench.step_tokens, std::max<int64_t>(1, test.depth))}),
                        .max_logit_rows = test.batch,
                        .kv_format = bench.kv_format,
                        .decode_batches = {},
                        .samples = true};
  if (test.decode && bench.decode_graphs) options.decode_batches = {test.batch};
  HEARTH_TRY_ASSIGN(Runner runner, Runner::create(bench.model, options, *bench.pool));
  if (test.depth > 0) HEARTH_TRY(runner.feed(0, random_tokens(test.depth, c.vocab_size, 1)));
  for (int64_t slot = 1; slot < test.batch; ++slot) HEARTH_TRY(runner.copy_context(0, slot));

  const int64_t each = test.decode ? 1 : test.tokens;
  const std::vector<int32_t> ids = random_tokens(test.batch * each, c.vocab_size, 2);
  std::vector<SlotTokens> feeds;
  for (int64_t slot = 0; slot < test.batch; ++slot)
    feeds.push_back(
        {.slot = slot, .tokens = std::span(ids).subspan(static_cast<size_t>(slot * each), static_cast<size_t>(each))});
  const SampleRow greedy{.params = {.temperature = 0}, .position = test.depth + each, .top_logprobs = kNoLogprobs};
  const std::vector<SampleRow> rows(feeds.size(), greedy);
  std::array<std::vector<SampleResult>, 2> results;
  results.fill(std::vector<SampleResult>(feeds.size()));

  Budget budget;
  std::vector<double> called_us;
  int64_t last_ns = bench.clock->now_ns();
  const auto finish = [&](bool counts) -> Status {
    HEARTH_TRY(runner.finish());
    const int64_t now_ns = bench.clock->now_ns();
    if (counts) called_us.push_back(static_cast<double>(now_ns - last_ns) * 1e-3);
    last_ns = now_ns;
    return {};
  };
  // As a server does it, each behind the one before.
  for (int64_t i = 0; i < kWarmSteps + kCalledSteps; ++i) {
    const bool follows = i > 0 && runner.can_follow(rows);
    if (i > 0 && !follows) HEARTH_TRY(finish(i > kWarmSteps));
    HEARTH_TRY(runner.start(feeds, rows, results[static_cast<size_t>(i % 2)]));
    for (const SlotTokens& feed : feeds) runner.cut(feed.slot, test.depth);
    if (follows) HEARTH_TRY(finish(i > kWarmSteps));
  }
  HEARTH_TRY(finish(true));
  budget.called_us = quantile(called_us, 0.5);

  HEARTH_TRY_ASSIGN(const StepProfile profile, runner.profile(feeds, rows, kRounds, *bench.clock));
  HEARTH_TRY_ASSIGN(const KvLayout kv, KvLayout::make(bench.kv_format, c.layers, c.kv_heads, c.head_dim, 16));
  const PartWork work(*bench.model, kv, test);
  budget.recorded = profile.recorded, budget.samples_on_device = profile.samples_on_device;
  budget.step_us = quantile(profile.step_us, 0.5);
  for (const StepPartTime& part : profile.parts) {
    BudgetRow row = row_of(std::string(step_part_name(part.part)), part.calls, part.us);
    work.add_to(part.part, row);
    budget.parts_us += row.us;
    budget.rows.push_back(std::move(row));
  }
  budget.sampling = row_of("sampling", 1, profile.sample_us);
  budget.sampling.bytes = static_cast<double>(test.batch * c.vocab_size * 4);
  return budget;
}

}  // namespace hearth
