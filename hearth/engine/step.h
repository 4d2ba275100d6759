// SPDX-License-Identifier: Apache-2.0
// One forward step between its planning and its collection: what the step thread computes and what it found.
// Filled by the planner, computed by the step thread, read by the planner; the queue between them hands it over.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/comm/comm.h"
#include "hearth/engine/engine.h"
#include "hearth/engine/kv_store.h"
#include "hearth/engine/observer.h"
#include "hearth/engine/sequence.h"
#include "hearth/engine/service_terms.h"
#include "hearth/kernels/sample/sample.h"
#include "hearth/memory/memory.h"
#include "hearth/model/model.h"
#include "hearth/schedule/attainment.h"
#include "hearth/schedule/cost_model.h"
#include "hearth/schedule/fair_share.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth {

// A model inside the engine.
struct ModelState {
  explicit ModelState(ForwardBuffers planned) : buffers(std::move(planned)) {}

  std::shared_ptr<const ServedModel> served;
  int64_t max_sequences = 0;
  int64_t step_tokens = 0;
  int64_t max_rows = 0;
  int64_t block_tokens = 0;
  std::shared_ptr<KvStore> store;

  // ---- the step thread's
  ForwardBuffers buffers;
  KvView kv;
  SingleRank comm;
  // What a place of the batch has sampled: the ids stay where they were made, and the next step takes its
  // input from here without the planner having seen it.
  std::vector<std::vector<int32_t>> sampled;  // [max_sequences] outputs of the sequence in that place
  std::vector<uint64_t> tenants;              // [max_sequences] sequences that the place has had, the present one too
  // [max_sequences] The row of the step that was started last from which the place gets its next id; -1: none.
  std::vector<int32_t> newest_row;

  // ---- the planner's
  ServiceTerms terms;  // with the engine's targets where the model has none
  SloCounts attainment;
  std::vector<std::unique_ptr<Sequence>> sequences;  // in the order of service
  std::vector<int64_t> free_places;
  KvModelId kv_model = -1;  // in the store's pool
  StepCostModel cost;
  int64_t last_turn = 0;  // number of the step that it had last
  FairShare share;
  double device_us = 0;     // that its steps took
  int64_t preemptions = 0;  // not yet told
  int64_t swapped_out = 0;  // of all preemptions, those that kept their KV in host memory
  int64_t used_us = 0;      // when a request of it came or ended last
  bool leaving = false;
  bool removed = false;                    // for good: it leaves and does not come again
  std::optional<std::promise<void>> left;  // kept once it has left, where somebody waits for that
  MemoryLimits limits;
  bool pinned = false;
  bool awaits_lift = false;  // a sequence of it needs more than its part, and another model is lifted
  KvModelStats kv_before;    // what was counted of it in the pool before it left it the last time
  ModelStats told;           // as it was when it left, under SharedStats::mutex: for who asks while it sleeps
  // Tokens that the pool can hold of it. Written by the planner, read by any thread.
  std::atomic<int64_t> kv_tokens = 0;
  // Of the weights, in the memory of the device. Shared with whoever counts it.
  std::shared_ptr<std::atomic<int64_t>> weight_bytes = std::make_shared<std::atomic<int64_t>>(0);

  // KV blocks that its largest request needs.
  int64_t needed_blocks() const {
    int64_t tokens = 0;
    for (const auto& s : sequences)
      if (!s->ended) tokens = std::max(tokens, s->prompt_size() + s->request().max_tokens);
    return blocks_for(tokens, block_tokens);
  }
};

// Whom a row of logits belongs to.
struct StepRow {
  Sequence* sequence = nullptr;
  int64_t place = 0;
  int64_t prompt_index = 0;  // > 0: the logprob of prompt[prompt_index]; 0: a token is drawn
};

struct Step {
  std::shared_ptr<ModelState> model;
  std::vector<Sequence*> sequences;

  // The StepBatch's arrays.
  std::vector<int32_t> tokens, positions, query_start, context_len, logit_rows;
  std::vector<int64_t> block_table;  // offsets
  int64_t block_table_stride = 0;

  struct FromPlace {
    int64_t token = 0;  // index into tokens
    int64_t place = 0;  // whose last sampled id it is
  };
  std::vector<FromPlace> from_place;
  struct NewPlace {
    int64_t place = 0;
    std::vector<int32_t> outputs;  // what its sequence has sampled before
  };
  std::vector<NewPlace> new_places;

  std::vector<StepRow> owners;  // of the rows
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  std::vector<TokenLogprob> top;  // room of all results

  std::vector<KvCopy> moves;  // before the step
  bool moved = false;         // all of them were carried out
  int64_t moving_ns = 0;
  // A bite of resizing in place of a step: `model` is null, nothing is computed.
  std::shared_ptr<KvStore> store;
  int64_t memory_bytes = 0;  // of the store, behind the moves

  StepFeatures features;
  double predicted_us = 0;
  Status status;         // of the whole step; rows have their own outcomes
  bool started = false;  // on the step thread: is under way, not failed before it was
  int64_t measured_ns = 0;

  void clear();
};

}  // namespace hearth
