// SPDX-License-Identifier: Apache-2.0
// SampleHistories: which tokens of which sequences a device knows, so that a call brings only the new ones. The device
// keeps a list for each slot, an entry for each different token; here are the slots' counts and sets of tokens.
//   I1. The first `entries` of a slot's list are the different tokens among the first `tokens` of prompt and outputs of
//       `sequence`, each with its number of outputs.
//   I2. What is no continuation is brought whole: another sequence or prompt, fewer tokens than before, or many new ones.
// One owner. Allocates when made and then never.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "hearth/kernels/sample/sample.h"

namespace hearth {

// A token of a history.
struct HistoryEntry {
  static constexpr uint32_t kOfPrompt = 0x80000000u;

  int32_t token = -1;
  uint32_t how = 0;  // how often it is among the outputs; kOfPrompt: in the prompt too
};

// Where a row's list is, and how long it was before the call.
struct PackedHistory {
  int64_t begin = 0;  // first entry of the slot
  int64_t entries = 0;
};

class SampleHistories {
 public:
  static constexpr int64_t kMostNew = 8;  // tokens that continue a history

  SampleHistories() = default;
  // For sequences of up to `context` tokens of prompt and outputs.
  SampleHistories(int64_t slots, int64_t context, int64_t vocab);

  int64_t size_bytes() const;  // of all lists
  // Whether the row's tokens have a slot.
  bool fits(const SampleRow& row) const;
  // How many of the row's tokens, prompt and outputs, the device knows. REQUIRES: fits(row), as below.
  int64_t known(const SampleRow& row) const;
  // At most so many words (of 4 bytes) are brought.
  int64_t most_words(const SampleRow& row) const;

  struct Brought {
    PackedHistory before;
    std::span<const HistoryEntry> added;  // behind the list
    std::span<const int32_t> bumped;      // outputs that are in the list: an output more, and again where twice
  };
  // What makes the device's list that of the row; the device is taken to know it from now on. Spans live until the next
  // call. REQUIRES: tokens of the vocabulary.
  Brought bring(const SampleRow& row);
  // The device knows nothing any more.
  void forget();

 private:
  struct Slot {
    uint64_t sequence = 0;
    int64_t prompt = 0, tokens = 0, entries = 0;
  };
  int64_t slot_entries() const { return std::min(context_, vocab_); }
  std::span<uint64_t> set_of(int64_t slot);

  int64_t context_ = 0, vocab_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint64_t> sets_;   // [slots, ceil(vocab / 64)] bits of tokens with an entry
  std::vector<int32_t> places_;  // [vocab] in `added_`, from 1; 0 between calls
  std::vector<HistoryEntry> added_;
  std::vector<int32_t> bumped_;
};

}  // namespace hearth
