// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/sample/sample_histories.h"

#include <algorithm>

namespace hearth {
namespace {

int64_t tokens_of(const SampleRow& row) { return std::ssize(row.prompt_tokens) + std::ssize(row.output_tokens); }

}  // namespace

SampleHistories::SampleHistories(int64_t slots, int64_t context, int64_t vocab)
    : context_(context), vocab_(vocab), slots_(static_cast<size_t>(slots)) {
  if (slots == 0) return;
  sets_.resize(static_cast<size_t>(slots * ((vocab + 63) / 64)));
  places_.resize(static_cast<size_t>(vocab));
  added_.reserve(static_cast<size_t>(slot_entries()));
  bumped_.reserve(static_cast<size_t>(kMostNew));
}

int64_t SampleHistories::size_bytes() const {
  return std::ssize(slots_) * slot_entries() * static_cast<int64_t>(sizeof(HistoryEntry));
}

std::span<uint64_t> SampleHistories::set_of(int64_t slot) {
  const auto words = static_cast<size_t>((vocab_ + 63) / 64);
  return std::span(sets_).subspan(static_cast<size_t>(slot) * words, words);
}

bool SampleHistories::fits(const SampleRow& row) const {
  return row.slot >= 0 && row.slot < std::ssize(slots_) && tokens_of(row) <= context_;
}

int64_t SampleHistories::known(const SampleRow& row) const {
  const Slot& slot = slots_[static_cast<size_t>(row.slot)];
  const int64_t fresh = tokens_of(row) - slot.tokens;
  const bool goes_on = slot.sequence == row.sequence && slot.prompt == std::ssize(row.prompt_tokens);
  return goes_on && fresh >= 0 && fresh <= kMostNew ? slot.tokens : 0;
}

int64_t SampleHistories::most_words(const SampleRow& row) const {
  return 2 * std::min(tokens_of(row) - known(row), vocab_);
}

SampleHistories::Brought SampleHistories::bring(const SampleRow& row) {
  Slot& slot = slots_[static_cast<size_t>(row.slot)];
  const int64_t prompt = std::ssize(row.prompt_tokens), all = tokens_of(row), from = known(row);
  const std::span<uint64_t> set = set_of(row.slot);
  if (from == 0) {
    slot = {.sequence = row.sequence, .prompt = prompt};
    std::ranges::fill(set, 0);
  }
  added_.clear();
  bumped_.clear();
  for (int64_t i = from; i < all; ++i) {
    const int32_t token =
        i < prompt ? row.prompt_tokens[static_cast<size_t>(i)] : row.output_tokens[static_cast<size_t>(i - prompt)];
    int32_t& place = places_[static_cast<size_t>(token)];
    uint64_t& word = set[static_cast<size_t>(token / 64)];
    const uint64_t bit = uint64_t{1} << (token % 64);
    if (place == 0 && (word & bit) != 0) {
      bumped_.push_back(token);
      continue;
    }
    if (place == 0) {
      added_.push_back({.token = token});
      place = static_cast<int32_t>(added_.size());
      word |= bit;
    }
    uint32_t& how = added_[static_cast<size_t>(place - 1)].how;
    how = i < prompt ? how | HistoryEntry::kOfPrompt : how + 1;
  }
  for (const HistoryEntry& entry : added_) places_[static_cast<size_t>(entry.token)] = 0;
  const PackedHistory before{.begin = row.slot * slot_entries(), .entries = slot.entries};
  slot.tokens = all;
  slot.entries += std::ssize(added_);
  return {before, added_, bumped_};
}

void SampleHistories::forget() { std::ranges::fill(slots_, Slot()); }

}  // namespace hearth
