// SPDX-License-Identifier: Apache-2.0
// The released rule ("saab"), section by section; docs/design/schedule.md has it in formulas.
#include "hearth/schedule/fineserve_policy.h"

#include <algorithm>

namespace hearth {
namespace {

constexpr int64_t kBatchTokens = 2048;   // max_num_batched_tokens
constexpr int64_t kMostUnfed = 3;        // sent and not past prefill: beyond it nothing is sent
constexpr double kProfiledTokens = 512;  // of the prompt whose TTFT was profiled

struct Sending {
  std::vector<int64_t> running, waiting;
  int64_t unfed = 0;
  double load = 0;  // tokens that the next iteration carries anyway
};

Sending look_at(const LocalModel& model) {
  Sending s;
  for (int64_t i = 0; i < std::ssize(model.sequences); ++i) {
    const PolicySequence& sequence = model.sequences[static_cast<size_t>(i)];
    if (sequence.running) {
      s.running.push_back(i);
      s.load += decodes(sequence) ? 1 : static_cast<double>(sequence.pending);
      s.unfed += !decodes(sequence);
    } else if (sequence.ready) {
      s.waiting.push_back(i);
    }
  }
  return s;
}

}  // namespace

Turn FineServePolicy::next(std::span<const LocalModel> models, int64_t now_us) const {
  Turn turn{.model = longest_without_turn(models)};
  if (turn.model < 0) return turn;
  const LocalModel& model = models[static_cast<size_t>(turn.model)];
  const auto at = [&](int64_t i) -> const PolicySequence& { return model.sequences[static_cast<size_t>(i)]; };
  Sending s = look_at(model);
  turn.order = s.running;
  turn.tokens = std::min(kBatchTokens, model.limits.tokens);
  const double tau_us = model.cost.us({.prefill_tokens = kProfiledTokens,
                                       .sequences = 1,
                                       .context_tokens = kProfiledTokens,
                                       .prefill_pairs = kProfiledTokens * kProfiledTokens / 2}) /
                        kProfiledTokens;
  const auto misses = [&](int64_t i, double tokens) {
    if (at(i).due_us == kNoDue || at(i).first_out) return false;
    return static_cast<double>(now_us) + tau_us * tokens >= static_cast<double>(at(i).due_us);
  };
  // 1. The hopeless ones are dropped; where the caller keeps them, they come when nothing else waits.
  std::vector<int64_t> late;
  std::erase_if(s.waiting, [&](int64_t i) {
    if (!at(i).late && !misses(i, static_cast<double>(at(i).pending) + s.load)) return false;
    if (!at(i).first_out) turn.hopeless.push_back({turn.model, i});
    late.push_back(i);
    return true;
  });
  if (s.waiting.empty()) s.waiting = late;
  if (s.unfed > kMostUnfed || s.load > kBatchTokens) return turn;
  // 2. The longest prompts stay behind until the whole batch is on time.
  double sum = s.load;
  for (const int64_t i : s.waiting) sum += static_cast<double>(at(i).pending);
  const auto any_misses = [&] {
    return std::ranges::any_of(s.waiting, [&](int64_t i) { return !at(i).late && misses(i, sum); });
  };
  while (!s.waiting.empty() && any_misses()) {
    const auto longest = std::ranges::max_element(s.waiting, {}, [&](int64_t i) { return at(i).pending; });
    sum -= static_cast<double>(at(*longest).pending);
    s.waiting.erase(longest);
  }
  // 3. The rest by arrival, until the batch is full.
  double tokens = s.load;
  for (const int64_t i : s.waiting) {
    turn.order.push_back(i);
    tokens += static_cast<double>(at(i).pending);
    if (tokens > kBatchTokens) break;
  }
  return turn;
}

}  // namespace hearth
