// SPDX-License-Identifier: Apache-2.0
// Gaussian elimination of five terms.
#include "hearth/schedule/cost_terms.h"

#include <algorithm>

namespace hearth {
namespace {

constexpr CostVector kScale{1, 64, 16, 16384, 65536};

// Of the terms in `free`; the others are 0.
CostVector solve_free(CostMatrix a, CostVector b, const std::array<bool, 5>& free) {
  CostVector x{};
  for (int i = 0; i < 5; ++i) {
    if (!free[i]) continue;
    for (int r = i + 1; r < 5; ++r) {
      if (!free[r]) continue;
      const double factor = a[r][i] / a[i][i];
      for (int c = i; c < 5; ++c) a[r][c] -= factor * a[i][c];
      b[r] -= factor * b[i];
    }
  }
  for (int i = 4; i >= 0; --i) {
    if (!free[i]) continue;
    double sum = b[i];
    for (int c = i + 1; c < 5; ++c)
      if (free[c]) sum -= a[i][c] * x[c];
    x[i] = sum / a[i][i];
  }
  return x;
}

}  // namespace

CostVector cost_terms(const StepLoad& load) {
  return {1.0, load.prefill_tokens / kScale[1], load.sequences / kScale[2], load.context_tokens / kScale[3],
          load.prefill_pairs / kScale[4]};
}

StepCost cost_of_terms(const CostVector& weights) {
  return {.step_us = weights[0],
          .prefill_token_us = weights[1] / kScale[1],
          .sequence_us = weights[2] / kScale[2],
          .context_token_us = weights[3] / kScale[3],
          .prefill_pair_us = weights[4] / kScale[4]};
}

CostVector solve_not_negative(const CostMatrix& a, const CostVector& b) {
  std::array<bool, 5> free;
  free.fill(true);
  while (true) {
    const CostVector x = solve_free(a, b, free);
    const auto least = std::ranges::min_element(x);
    if (*least >= 0) return x;
    free[static_cast<size_t>(least - x.begin())] = false;
  }
}

}  // namespace hearth
