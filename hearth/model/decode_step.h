// SPDX-License-Identifier: Apache-2.0
// Decode steps of fixed shape, recorded once and put into the queue again as one (CUDA graphs): every sequence of the
// step has one token, and its logits are wanted. A step is padded to the next of a few numbers of sequences and planned
// for the next of a few contexts, so that few recordings serve all.
//   I1. A recording reads the step's arrays where StepStaging puts those of its shape: always at the same addresses.
//   I2. Padded slots read and write the KV pool's dummy block alone, and their logits go nowhere.
// Owned by one step loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "hearth/memory/memory.h"
#include "hearth/memory/step_staging.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth {

// The numbers of sequences that decode steps of up to `largest` are padded to, ascending: 1, 2, 4, multiples of 8 to
// 64, of 16 to 256, of 64 above, and `largest` itself. Fine steps where a slot costs the most of a step.
std::vector<int64_t> decode_batches(int64_t largest);

// The contexts that decode steps are planned for, ascending: 1024, each four times the one before, and `largest`
// itself.
std::vector<int64_t> decode_contexts(int64_t largest);

class DecodeSteps {
 public:
  struct Entry {
    PaddedShape shape;
    std::unique_ptr<Recording> recording;
  };

  // Recordings run over this pool alone.
  void set_pool(const KvView& kv) { kv_ = kv; }
  void add(Entry entry);
  // The smallest that holds the step; null: the step is no decode step, its pool another, or none is large enough.
  Entry* find(const StepBatch& step, const KvView& kv);

 private:
  KvView kv_;
  std::map<std::pair<int64_t, int64_t>, Entry> entries_;  // by sequences and context
  std::vector<int64_t> batches_, contexts_;               // ascending
};

}  // namespace hearth
