// SPDX-License-Identifier: Apache-2.0
// The normal equations of five scaled terms, kept and solved again with every step: 5 x 5 is nothing.
#include "hearth/schedule/cost_model.h"

#include <algorithm>
#include <cmath>

namespace hearth {
namespace {

// An observation's weight halves in about 350 steps: clocks and neighbours change, shapes do not.
constexpr double kForgetting = 0.998;
// Pull towards the last solution, relative to a term's own moment and to the largest.
constexpr double kRidge = 1e-4, kLeastRidge = 1e-7;
// An error beyond this many usual ones counts as if it were so large.
constexpr double kHuber = 3;
constexpr double kErrorRate = 0.02, kLeastError = 1e-3;

// Terms are about 1 in a usual step.
constexpr std::array<double, 5> kScale{1, 64, 16, 16384, 65536};

using Matrix = std::array<std::array<double, 5>, 5>;
using Vector = std::array<double, 5>;

// Gaussian elimination of the terms in `free`; the others are 0. `a` is positive definite.
Vector solve_free(const Matrix& matrix, const Vector& right, const std::array<bool, 5>& free) {
  Matrix a = matrix;
  Vector b = right, x{};
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

StepCostModel::Vector StepCostModel::terms(const StepLoad& load) {
  return {1.0, load.prefill_tokens / kScale[1], load.sequences / kScale[2], load.context_tokens / kScale[3],
          load.prefill_pairs / kScale[4]};
}

StepCost StepCostModel::cost() const {
  if (steps_ < kMinSteps) return {};
  return {.step_us = weights_[0],
          .prefill_token_us = weights_[1] / kScale[1],
          .sequence_us = weights_[2] / kScale[2],
          .context_token_us = weights_[3] / kScale[3],
          .prefill_pair_us = weights_[4] / kScale[4]};
}

void StepCostModel::observe(const StepLoad& load, double measured_us) {
  if (!std::isfinite(measured_us) || measured_us < 0) return;
  const Vector x = terms(load);
  const double time_us = std::max(measured_us, 1.0);
  double weight = 1 / (time_us * time_us);
  if (steps_ >= kMinSteps) {
    const double error = std::abs(predict_us(load) - time_us) / time_us;
    const double limit = kHuber * error_;
    if (error > limit) weight *= limit / error;
    error_ += kErrorRate * (std::min(error, 2 * limit) - error_);
    error_ = std::max(error_, kLeastError);
  }
  ++steps_;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) moments_[i][j] = kForgetting * moments_[i][j] + weight * x[i] * x[j];
    products_[i] = kForgetting * products_[i] + weight * x[i] * time_us;
  }
  solve();
}

// Non-negative: the most negative term is fixed at 0 and the rest solved again, until none is.
void StepCostModel::solve() {
  double largest = 0;
  for (int i = 0; i < kTerms; ++i) largest = std::max(largest, moments_[i][i]);
  Matrix a = moments_;
  Vector b = products_;
  for (int i = 0; i < kTerms; ++i) {
    const double ridge = kRidge * moments_[i][i] + kLeastRidge * largest;
    a[i][i] += ridge;
    b[i] += ridge * weights_[i];
  }
  std::array<bool, kTerms> free;
  free.fill(true);
  while (true) {
    const Vector x = solve_free(a, b, free);
    const auto least = std::ranges::min_element(x);
    if (*least >= 0) {
      weights_ = x;
      return;
    }
    free[static_cast<size_t>(least - x.begin())] = false;
  }
}

}  // namespace hearth
