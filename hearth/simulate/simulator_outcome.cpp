// SPDX-License-Identifier: Apache-2.0
// What is told of a simulation when it has ended.
#include <algorithm>

#include "hearth/simulate/simulator.h"
#include "hearth/simulate/simulator_state.h"

namespace hearth {
namespace simulated {

void tell_rest(Model& model, int64_t warm_us, ModelOutcome& outcome) {
  const auto lost = [&](const Owned& s) { outcome.unfinished += s->request.arrival_us >= warm_us; };
  std::ranges::for_each(model.running, lost);
  std::ranges::for_each(model.waiting, lost);
  std::ranges::for_each(model.late, lost);
  std::ranges::sort(model.ttft_s);
  const auto quantile = [&](double p) {
    if (model.ttft_s.empty()) return 0.0;
    return model.ttft_s[static_cast<size_t>(p * static_cast<double>(model.ttft_s.size() - 1))];
  };
  outcome.ttft_p50_s = quantile(0.5);
  outcome.ttft_p99_s = quantile(0.99);
}

}  // namespace simulated

double SimulationOutcome::attainment() const {
  int64_t all = 0, kept = 0;
  for (const ModelOutcome& m : models) {
    all += m.requests;
    kept += m.attained;
  }
  return all == 0 ? 1 : static_cast<double>(kept) / static_cast<double>(all);
}

double SimulationOutcome::tokens_per_second(const Load& load) const {
  int64_t tokens = 0;
  for (const ModelOutcome& m : models) tokens += m.generated_tokens;
  return static_cast<double>(tokens) / load.seconds;
}

}  // namespace hearth
