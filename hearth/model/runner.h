// SPDX-License-Identifier: Apache-2.0
// Runner: drives a model over a few sequences with a KV pool of its own, for commands that work on known
// text: generate, chat, eval. The engine replaces it where requests come and go.
//   I1. Slots are independent; a slot's context only grows until it is cut.
//   I2. The pool holds max_context tokens for every slot from the start; slots' blocks interleave in it.
// One owning thread.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/model/model.h"
#include "hearth/model/step_profile.h"

namespace hearth {

struct RunnerOptions {
  int64_t max_sequences = 1;
  int64_t max_context = 0;       // tokens per sequence; 0: the model's max_positions
  int64_t chunk_tokens = 512;    // tokens of a step; longer feeds are split into several steps
  int64_t max_logit_rows = 512;  // rows of logits of a step
  int64_t block_tokens = 16;     // tokens of a KV block
  KvFormatId kv_format = KvFormatId::kF32;
  // Numbers of slots whose decode steps (a token for each, logits of all) are recorded where the device can, and steps
  // of fewer slots padded to them (decode_step.h).
  std::vector<int64_t> decode_batches;
  bool samples = false;  // plan for step_and_sample() on a device
};

// Tokens that go to one slot in a step.
struct SlotTokens {
  int64_t slot = 0;
  std::span<const int32_t> tokens;
  bool all_logits = false;  // logits of every token; else of the last one only
};

class Runner {
 public:
  // ResourceExhausted where weights fit but the KV pool does not: the message says how many bytes a
  // context of how many tokens costs.
  static Result<Runner> create(std::shared_ptr<const Model> model, const RunnerOptions& options, ThreadPool& pool);

  const Model& model() const { return *model_; }
  int64_t max_context() const { return options_.max_context; }
  const RunnerOptions& options() const { return options_; }  // max_context is never 0
  int64_t context(int64_t slot) const { return context_len_[static_cast<size_t>(slot)]; }

  // Forgets the slot's tokens from `length` on. REQUIRES: 0 <= length <= context(slot).
  void cut(int64_t slot, int64_t length);

  // Gives slot `to` the context of slot `from`, keys and values included, in place of its own.
  Status copy_context(int64_t from, int64_t to);

  // One step. Returns logits [rows, vocab] f32, rows in the order of `feeds`, valid until the next call.
  // InvalidArgument for a context over max_context, or more tokens than chunk_tokens or rows than
  // max_logit_rows; on an error no slot has changed.
  Result<ConstTensorView> step(std::span<const SlotTokens> feeds);

  // The same step, whose rows of logits are sampled (sample.h) instead of returned: rows and results in the order of
  // `feeds`. Where slots have changed and rows failed, the results say which.
  Status step_and_sample(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows,
                         std::span<SampleResult> results);

  // The same in two halves (ForwardBuffers::start()): tokens below 0 name rows of the step that was started last. Contexts
  // have grown once it is started.
  Status start(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows, std::span<SampleResult> results);
  Status finish() { return buffers_.finish(); }
  bool can_follow(std::span<const SampleRow> rows) const { return buffers_.can_follow(rows); }

  // Where the time of that step goes (step_profile.h). No slot changes, but the keys and values behind their contexts.
  Result<StepProfile> profile(std::span<const SlotTokens> feeds, std::span<const SampleRow> rows, int64_t rounds,
                              const Clock& clock);

  // Feeds all tokens to a slot, in chunks, and returns the logits [1, vocab] of the last one.
  // InvalidArgument for no tokens.
  Result<ConstTensorView> feed(int64_t slot, std::span<const int32_t> tokens);

  ExecContext& exec() { return buffers_.exec(); }

 private:
  Runner(std::shared_ptr<const Model> model, ForwardBuffers buffers)
      : model_(std::move(model)), buffers_(std::move(buffers)) {}

  // The step's arrays, filled. Errors of step().
  Result<StepBatch> gather(std::span<const SlotTokens> feeds);
  // Slots have what was fed.
  void advance(std::span<const SlotTokens> feeds);

  int64_t block_offset(int64_t block, int64_t slot) const {
    return (block * options_.max_sequences + slot) * kv_.layout.block_bytes();
  }

  std::shared_ptr<const Model> model_;
  RunnerOptions options_;
  ForwardBuffers buffers_;
  Buffer pool_memory_;
  KvView kv_;
  SingleRank comm_;
  int64_t blocks_per_slot_ = 0;
  std::vector<int32_t> context_len_;  // [slots]
  // The arrays that a StepBatch points into.
  std::vector<int32_t> tokens_, positions_, query_start_, step_context_, logit_rows_;
  std::vector<int64_t> block_table_;
};

}  // namespace hearth
