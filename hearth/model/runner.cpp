// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/runner.h"

#include <algorithm>
#include <limits>

namespace hearth {

Result<Runner> Runner::create(std::shared_ptr<const Model> model, const RunnerOptions& options, ThreadPool& pool) {
  const ModelConfig& c = model->config();
  RunnerOptions wanted = options;
  if (wanted.max_context == 0) wanted.max_context = c.max_positions;
  if (wanted.max_sequences < 1 || wanted.max_context < 1)
    return invalid_argument("runner for {} sequences of {} tokens; wanted at least 1", wanted.max_sequences,
                            wanted.max_context);
  // At least as many as the slots will have; the block size is checked below.
  int64_t block_entries = 0;
  if (__builtin_mul_overflow(wanted.max_sequences, wanted.max_context / std::max<int64_t>(1, wanted.block_tokens) + 1,
                             &block_entries))
    block_entries = std::numeric_limits<int64_t>::max();
  HEARTH_TRY_ASSIGN(ForwardBuffers buffers, ForwardBuffers::create(*model,
                                                                   {.max_tokens = wanted.chunk_tokens,
                                                                    .max_logit_rows = wanted.max_logit_rows,
                                                                    .max_context = wanted.max_context,
                                                                    .max_block_entries = block_entries,
                                                                    .samples = wanted.samples},
                                                                   pool));
  Runner runner(std::move(model), std::move(buffers));
  runner.options_ = wanted;
  HEARTH_TRY_ASSIGN(runner.kv_.layout, KvLayout::make(wanted.kv_format, c.layers, runner.model_->local_kv_heads(),
                                                      c.head_dim, wanted.block_tokens));
  runner.blocks_per_slot_ = (wanted.max_context + wanted.block_tokens - 1) / wanted.block_tokens;
  const KvLayout& layout = runner.kv_.layout;
  int64_t pool_bytes = 0;
  if (__builtin_mul_overflow(runner.blocks_per_slot_, layout.block_bytes(), &pool_bytes) ||
      __builtin_mul_overflow(pool_bytes, wanted.max_sequences, &pool_bytes))
    return resource_exhausted("KV pool for {} sequences of {} tokens: more bytes than can be counted",
                              wanted.max_sequences, wanted.max_context);
  // One more for slots of a padded step.
  if (!wanted.decode_batches.empty()) {
    runner.kv_.dummy_block = pool_bytes;
    pool_bytes += layout.block_bytes();
  }
  HEARTH_TRY_ASSIGN(runner.pool_memory_,
                    runner.model_->ops()
                        .memory()
                        .allocate(pool_bytes)
                        .with_context(fmt::format("KV pool for {} sequences of {} tokens at {} bytes a token",
                                                  wanted.max_sequences, wanted.max_context, layout.bytes_per_token())));
  runner.kv_.base = runner.pool_memory_.data();
  runner.context_len_.assign(static_cast<size_t>(wanted.max_sequences), 0);
  HEARTH_TRY(runner.buffers_.record_decode(*runner.model_, runner.kv_, wanted.decode_batches));
  return runner;
}

void Runner::cut(int64_t slot, int64_t length) {
  HEARTH_CHECK(slot >= 0 && slot < options_.max_sequences && length >= 0 && length <= context(slot),
               "cut of slot {} to {} tokens", slot, length);
  context_len_[static_cast<size_t>(slot)] = static_cast<int32_t>(length);
}

Status Runner::copy_context(int64_t from, int64_t to) {
  HEARTH_CHECK(from >= 0 && from < options_.max_sequences && to >= 0 && to < options_.max_sequences,
               "slots {} and {} of {}", from, to, options_.max_sequences);
  if (from == to) return {};
  const int64_t block_bytes = kv_.layout.block_bytes();
  const int64_t blocks = (context(from) + options_.block_tokens - 1) / options_.block_tokens;
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, model_->ops().memory().create_queue());
  for (int64_t b = 0; b < blocks; ++b)
    HEARTH_TRY(queue->copy_within(kv_.base + block_offset(b, to), kv_.base + block_offset(b, from), block_bytes));
  HEARTH_TRY(queue->synchronize());
  context_len_[static_cast<size_t>(to)] = context_len_[static_cast<size_t>(from)];
  return {};
}

Result<StepBatch> Runner::gather(std::span<const SlotTokens> feeds) {
  tokens_.clear();
  positions_.clear();
  step_context_.clear();
  logit_rows_.clear();
  block_table_.clear();
  query_start_.assign(1, 0);
  for (const SlotTokens& feed : feeds) {
    HEARTH_CHECK(feed.slot >= 0 && feed.slot < options_.max_sequences, "slot {} of {}", feed.slot,
                 options_.max_sequences);
    const int64_t begin = context(feed.slot), count = static_cast<int64_t>(feed.tokens.size());
    if (begin + count > options_.max_context)
      return invalid_argument("context of {} tokens exceeds the maximum of {}", begin + count, options_.max_context);
    for (int64_t i = 0; i < count; ++i) {
      if (feed.all_logits || i == count - 1) logit_rows_.push_back(static_cast<int32_t>(tokens_.size()));
      tokens_.push_back(feed.tokens[static_cast<size_t>(i)]);
      positions_.push_back(static_cast<int32_t>(begin + i));
    }
    query_start_.push_back(static_cast<int32_t>(tokens_.size()));
    step_context_.push_back(static_cast<int32_t>(begin + count));
    for (int64_t b = 0; b < blocks_per_slot_; ++b) block_table_.push_back(block_offset(b, feed.slot));
  }
  return StepBatch{.tokens = tokens_,
                   .positions = positions_,
                   .query_start = query_start_,
                   .context_len = step_context_,
                   .block_table = block_table_,
                   .block_table_stride = blocks_per_slot_,
                   .logit_rows = logit_rows_};
}

void Runner::advance(std::span<const SlotTokens> feeds) {
  for (size_t i = 0; i < feeds.size(); ++i) context_len_[static_cast<size_t>(feeds[i].slot)] = step_context_[i];
}

Result<ConstTensorView> Runner::step(std::span<const SlotTokens> feeds) {
  HEARTH_TRY_ASSIGN(const StepBatch batch, gather(feeds));
  HEARTH_TRY_ASSIGN(const ConstTensorView logits, forward(*model_, batch, kv_, comm_, buffers_));
  advance(feeds);
  return logits;
}

Status Runner::step_and_sample(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows,
                               std::span<SampleResult> results) {
  HEARTH_TRY_ASSIGN(const StepBatch batch, gather(feeds));
  for (SampleResult& result : results) result.outcome = SampleOutcome::kOk;  // of an earlier call they would count
  Status sampled = forward_and_sample(*model_, batch, kv_, comm_, buffers_, rows, results);
  const auto failed = [](const SampleResult& result) { return result.outcome != SampleOutcome::kOk; };
  if (sampled || std::ranges::any_of(results, failed)) advance(feeds);
  return sampled;
}

Status Runner::start(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows,
                     std::span<SampleResult> results) {
  HEARTH_TRY_ASSIGN(const StepBatch batch, gather(feeds));
  HEARTH_TRY(buffers_.start(*model_, batch, kv_, comm_, rows, results));
  advance(feeds);
  return {};
}

Result<StepProfile> Runner::profile(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows, int64_t rounds,
                                    const Clock& clock) {
  HEARTH_TRY_ASSIGN(const StepBatch batch, gather(feeds));
  return profile_step(*model_, comm_, buffers_,
                      {.batch = &batch, .kv = &kv_, .rows = rows, .rounds = rounds, .clock = &clock});
}

Result<ConstTensorView> Runner::feed(int64_t slot, std::span<const int32_t> tokens) {
  if (tokens.empty()) return invalid_argument("no tokens to feed");
  const int64_t count = static_cast<int64_t>(tokens.size());
  if (context(slot) + count > options_.max_context)
    return invalid_argument("context of {} tokens exceeds the maximum of {}", context(slot) + count,
                            options_.max_context);
  for (int64_t at = 0;; at += options_.chunk_tokens) {
    const int64_t chunk = std::min(options_.chunk_tokens, count - at);
    const SlotTokens feed{slot, tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(chunk))};
    HEARTH_TRY_ASSIGN(const ConstTensorView logits, step({&feed, 1}));
    if (at + chunk == count) return logits;
  }
}

}  // namespace hearth
