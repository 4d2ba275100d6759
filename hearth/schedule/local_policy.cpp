// SPDX-License-Identifier: Apache-2.0
// What policies share, and the plainest of them.
#include "hearth/schedule/local_policy.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "hearth/schedule/fineserve_policy.h"
#include "hearth/schedule/slo_policy.h"

namespace hearth {
namespace {

class FcfsPolicy final : public LocalPolicy {
 public:
  Turn next(std::span<const LocalModel> models, int64_t) const override {
    return fcfs_turn(models, longest_without_turn(models));
  }
};

// The least by `key` of those that have anything ready; -1: none.
template <class Key>
int64_t first_ready(std::span<const LocalModel> models, Key key) {
  int64_t best = -1;
  for (int64_t m = 0; m < std::ssize(models); ++m) {
    const LocalModel& model = models[static_cast<size_t>(m)];
    if (best >= 0 && key(models[static_cast<size_t>(best)]) <= key(model)) continue;
    if (has_ready(model)) best = m;
  }
  return best;
}

}  // namespace

Turn fcfs_turn(std::span<const LocalModel> models, int64_t index) {
  Turn turn{.model = index, .order = {}, .tokens = 0, .hopeless = {}};
  if (index < 0) return turn;
  const LocalModel& model = models[static_cast<size_t>(index)];
  turn.order.resize(model.sequences.size());
  std::iota(turn.order.begin(), turn.order.end(), 0);
  turn.tokens = model.limits.tokens;
  return turn;
}

bool has_ready(const LocalModel& model) {
  return !model.skip && std::ranges::any_of(model.sequences, [](const auto& s) { return s.ready && s.pending > 0; });
}

int64_t longest_without_turn(std::span<const LocalModel> models) {
  return first_ready(models, [](const LocalModel& m) { return m.last_turn; });
}

int64_t least_served(std::span<const LocalModel> models) {
  return first_ready(models, [](const LocalModel& m) { return std::pair(m.service, m.last_turn); });
}

StepLoad decode_load(const LocalModel& model) {
  StepLoad load;
  for (const PolicySequence& s : model.sequences) {
    if (!decodes(s) || !s.ready) continue;
    ++load.sequences;
    load.context_tokens += static_cast<double>(s.fed + 1);
  }
  return load;
}

Result<std::unique_ptr<LocalPolicy>> make_local_policy(std::string_view name) {
  if (name == "fcfs") return std::unique_ptr<LocalPolicy>(new FcfsPolicy);
  if (name == "slo") return std::unique_ptr<LocalPolicy>(new SloPolicy);
  if (name == "fineserve") return std::unique_ptr<LocalPolicy>(new FineServePolicy);
  return invalid_argument("no local policy '{}': fcfs, slo, fineserve", name);
}

}  // namespace hearth
