// SPDX-License-Identifier: Apache-2.0
// Three passes over the sequences in the order of service; what a pass gives away is gone for the next.
#include "hearth/schedule/step_policy.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace hearth {
namespace {

int64_t growth(const PolicyLimits& limits, int64_t running) {
  return static_cast<int64_t>(std::ceil(limits.growth_blocks * static_cast<double>(running)));
}

class Chooser {
 public:
  Chooser(std::span<const PolicySequence> sequences, const PolicyLimits& limits)
      : sequences_(sequences),
        limits_(limits),
        tokens_(limits.tokens),
        rows_(limits.rows),
        places_(limits.sequences),
        blocks_(limits.free_blocks),
        state_(sequences.size(), State::kOpen) {
    for (const PolicySequence& s : sequences) places_ -= s.running;
  }

  StepChoice choose() {
    const auto count = static_cast<int64_t>(sequences_.size());
    for (int64_t i = 0; i < count; ++i)
      if (at(i).running && at(i).pending == 1) feed_running(i);
    for (int64_t i = 0; i < count; ++i)
      if (at(i).running && at(i).pending > 1) feed_running(i);
    for (int64_t i = 0; i < count; ++i)
      if (!at(i).running && at(i).ready && at(i).pending > 0 && !admit(i)) break;
    return std::move(choice_);
  }

 private:
  // kHeld: left out, so that it can be preempted at the next step.
  enum class State : uint8_t { kOpen, kFed, kHeld, kPreempted };

  const PolicySequence& at(int64_t i) const { return sequences_[static_cast<size_t>(i)]; }
  State& state(int64_t i) { return state_[static_cast<size_t>(i)]; }

  int64_t blocks_for(int64_t tokens) const { return (tokens + limits_.block_tokens - 1) / limits_.block_tokens; }
  int64_t blocks_needed(int64_t i, int64_t tokens) const {
    return std::max<int64_t>(0, blocks_for(at(i).fed + tokens) - at(i).blocks);
  }

  // The most tokens of sequence i that tokens and rows allow.
  int64_t chunk(int64_t i) const {
    const int64_t tokens = std::min(at(i).pending, tokens_);
    if (rows_ < 1) return 0;
    return at(i).row_per_token ? std::min(tokens, rows_) : tokens;
  }

  void preempt(int64_t victim) {
    state(victim) = State::kPreempted;
    choice_.preempted.push_back(victim);
    blocks_ += at(victim).own_blocks;
    ++places_;
  }

  // The running sequence that is best preempted for `needy`: a paused one, else the last in the order of service
  // that comes after it.
  std::optional<int64_t> victim_for(int64_t needy, bool only_paused) {
    const auto count = static_cast<int64_t>(sequences_.size());
    const auto can = [&](int64_t i) { return i != needy && at(i).running && state(i) == State::kOpen; };
    for (int64_t i = count - 1; i >= 0; --i)
      if (can(i) && at(i).paused && !at(i).in_flight && at(i).own_blocks > 0) return i;
    if (only_paused) return std::nullopt;
    for (int64_t i = count - 1; i > needy; --i)
      if (can(i) && at(i).own_blocks > 0) return i;
    return std::nullopt;
  }

  // Frees blocks until `tokens` more of sequence i fit. False: not in this step.
  bool make_room(int64_t i, int64_t tokens) {
    while (blocks_needed(i, tokens) > blocks_) {
      choice_.short_of_blocks = true;
      const auto victim = victim_for(i, false);
      if (!victim) return false;
      if (at(*victim).in_flight) {
        state(*victim) = State::kHeld;
        return false;
      }
      preempt(*victim);
    }
    return true;
  }

  void feed(int64_t i, int64_t tokens) {
    const int64_t new_blocks = blocks_needed(i, tokens);
    state(i) = State::kFed;
    tokens_ -= tokens;
    rows_ -= at(i).row_per_token ? tokens : 1;
    blocks_ -= new_blocks;
    choice_.feeds.push_back({i, tokens, new_blocks});
  }

  void feed_running(int64_t i) {
    if (!at(i).ready || state(i) != State::kOpen) return;
    const int64_t tokens = chunk(i);
    if (tokens > 0 && make_room(i, tokens)) feed(i, tokens);
  }

  // False: neither this one nor any behind it.
  bool admit(int64_t i) {
    const int64_t tokens = chunk(i);
    if (tokens < 1) return false;
    const int64_t needed = blocks_needed(i, at(i).pending) + growth(limits_, limits_.sequences - places_);
    while (places_ < 1 || needed > blocks_) {
      if (needed > blocks_) choice_.short_of_blocks = true;
      const auto victim = victim_for(i, true);
      if (!victim) return false;
      preempt(*victim);
    }
    --places_;
    feed(i, tokens);
    return true;
  }

  std::span<const PolicySequence> sequences_;
  const PolicyLimits& limits_;
  int64_t tokens_, rows_, places_, blocks_;  // what is left
  std::vector<State> state_;
  StepChoice choice_;
};

}  // namespace

bool admissible(const PolicySequence& sequence, std::span<const PolicySequence> all, const PolicyLimits& limits) {
  const int64_t running = std::ranges::count_if(all, &PolicySequence::running);
  const int64_t tokens = sequence.fed + sequence.pending;
  const int64_t blocks = (tokens + limits.block_tokens - 1) / limits.block_tokens - sequence.blocks;
  return running < limits.sequences && blocks + growth(limits, running) <= limits.free_blocks;
}

StepChoice choose_step(std::span<const PolicySequence> sequences, const PolicyLimits& limits) {
  return Chooser(sequences, limits).choose();
}

}  // namespace hearth
