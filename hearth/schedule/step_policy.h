// SPDX-License-Identifier: Apache-2.0
// Which sequences of a model go into the next step, with how many tokens each: a pure function of what it is
// given. Decodes first, then prompts in chunks of what is left of the step, then new sequences; the older (of
// the same priority) before the younger, and where KV memory ends the youngest goes back to the queue.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/schedule/slo.h"

namespace hearth {

// A sequence as the policy sees it.
struct PolicySequence {
  bool running = false;        // has a place in the batch and KV blocks
  bool ready = false;          // may be in the next step; else it waits for its reader, a grammar or a shared prefix
  bool paused = false;         // it waits for a reader that does not read: the first to give up its blocks
  bool in_flight = false;      // is in a step that has not ended, so that its blocks cannot be taken
  int64_t fed = 0;             // tokens in its KV cache; of a waiting one: tokens of a prefix that others have computed
  int64_t pending = 0;         // tokens that may be fed now; 0: none
  int64_t blocks = 0;          // KV blocks that hold `fed`
  int64_t own_blocks = 0;      // of those, blocks that would be free without it
  bool row_per_token = false;  // every token fed brings a row of logits (prompt logprobs), not only the last

  // ---- for local policies (local_policy.h); choose_step() does not look at them
  int64_t due_us = kNoDue;  // when the next token should be there
  bool first_out = false;   // it has brought a token
  bool late = false;        // its first token was, or will be, late: nothing can be attained any more
};

struct PolicyLimits {
  int64_t tokens = 0;     // of a step
  int64_t rows = 0;       // of logits of a step; at least `sequences`
  int64_t sequences = 0;  // places in the batch
  int64_t block_tokens = 16;
  int64_t free_blocks = 0;
  // Blocks that stay free for each running sequence when one is admitted, so that it does not push out an old one at
  // once. On average a sequence needs one of its next block_tokens steps.
  double growth_blocks = 1;
};

struct StepFeed {
  int64_t sequence = 0;  // index into the input
  int64_t tokens = 0;
  int64_t new_blocks = 0;
};

struct StepChoice {
  std::vector<StepFeed> feeds;
  std::vector<int64_t> preempted;  // running sequences that give up their blocks and wait, before the step
  bool short_of_blocks = false;    // something ready was left out because KV memory was short
};

// Whether there are a place and blocks for all pending tokens of a waiting sequence beside the running ones.
bool admissible(const PolicySequence& sequence, std::span<const PolicySequence> all, const PolicyLimits& limits);

// `sequences` in the order of service: the first is served first.
//   P1. The sums of tokens, rows, places and new blocks keep within the limits.
//   P2. A sequence that is ready, running and first is always fed, unless it waits for blocks of a sequence
//       in flight, which is then left out so that it can be preempted at the next step.
//   P3. A waiting sequence is admitted only after all ready ones before it were, and only with blocks for all of
//       its pending tokens, so that no prompt starts that cannot go on.
//   P4. Nothing in flight and nothing ready that comes before the one in need is preempted.
StepChoice choose_step(std::span<const PolicySequence> sequences, const PolicyLimits& limits);

}  // namespace hearth
