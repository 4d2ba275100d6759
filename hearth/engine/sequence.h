// SPDX-License-Identifier: Apache-2.0
// Sequence: one choice of a request as the step loop sees it. The planner thread's alone; steps in flight point
// to it, so it stays until they have ended.
//   I1. known() = prompt + planned outputs; fed <= known(); `blocks` hold exactly ceil(fed / block_tokens) blocks.
//   I2. At most one output is planned and not collected when a step is planned: the one of the step in flight.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "hearth/engine/submission.h"
#include "hearth/kv/kv_pool.h"

namespace hearth {

// Whole prompt blocks that the first choice of a request has computed, kept for the others. Holds a reference
// to each block.
struct PromptShare {
  std::vector<KvBlock> blocks;
  int64_t tokens = 0;     // of whole blocks, fewer than the prompt has: the last token's logits are always needed
  bool computed = false;  // the first choice's steps up to there were launched
  int64_t waiting = 0;    // choices that have not yet been admitted
};

// KV of a sequence that has no blocks.
struct SwappedKv {
  int64_t at = 0;      // in the swap space
  int64_t tokens = 0;  // that it holds
};

struct Sequence {
  std::shared_ptr<Submission> submission;
  int32_t choice = 0;
  int64_t arrival = 0;

  std::vector<int32_t> outputs;  // collected
  int64_t planned = 0;           // outputs, that of the step in flight included
  int64_t fed = 0;               // tokens in the KV cache, those of steps in flight included
  std::vector<KvBlock> blocks;   // of the KV cache
  int64_t place = -1;            // in the batch; -1: waiting
  bool new_place = false;        // the step thread does not know that the place is ours
  int in_flight = 0;             // steps

  int64_t prompt_scored = 1;    // prompt tokens whose logprob is told or in flight; the first has none
  bool counted_waiting = true;  // in SharedStats::waiting: until it is admitted or ends
  bool mask_ready = false;      // with a grammar: the next token's mask is there
  Slo slo;                      // the request's, or else the engine's
  bool late = false;            // its first token was, or will be, late
  bool ended = false;           // nothing more is planned
  bool done = false;            // the text has ended too

  std::optional<PrefixChain> chain;  // behind the last of `keys`
  std::vector<PrefixKey> keys;       // of the whole blocks of known tokens, as far as they were asked for
  int64_t asked_blocks = 0;          // of a waiting one: blocks that were looked for in the cache at this plan;
  int64_t hit_blocks = 0;            // of these, blocks that are there;
  int64_t revived_blocks = 0;        // of these, blocks that nobody holds
  int64_t published = 0;             // blocks that the cache knows, or is not to be told of
  bool sound = true;                 // no row of it has failed: what it has computed is of use to others
  bool gives_way = false;            // in no step any more, so that another model can have its blocks
  bool lifts = false;                // its model is guaranteed more than its part, so that it can end

  std::optional<SwappedKv> swapped;    // only while it waits
  std::shared_ptr<PromptShare> share;  // of the request, while it is of use to this choice

  int64_t admitted_ns = -1, first_token_ns = -1, last_token_ns = -1;

  const Request& request() const { return submission->request(); }
  int64_t prompt_size() const { return std::ssize(request().prompt); }
  int64_t known() const { return prompt_size() + planned; }
  bool running() const { return place >= 0; }

  // Tokens up to which the sequence can be fed now: all that are known, while another output is wanted.
  int64_t feed_end() const {
    if (request().max_tokens == 0) return prompt_size() - 1;
    return planned < request().max_tokens ? known() : fed;
  }
};

}  // namespace hearth
