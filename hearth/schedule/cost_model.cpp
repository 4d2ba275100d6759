// SPDX-License-Identifier: Apache-2.0
// The normal equations of five scaled terms, kept and solved again with every step: 5 x 5 is nothing.
#include "hearth/schedule/cost_model.h"

#include <algorithm>
#include <cmath>

#include "hearth/schedule/cost_terms.h"

namespace hearth {
namespace {

// An observation's weight halves in about 350 steps: clocks and neighbours change, shapes do not.
constexpr double kForgetting = 0.998;
// Pull towards the last solution, relative to a term's own moment and to the largest.
constexpr double kRidge = 1e-4, kLeastRidge = 1e-7;
// An error beyond this many usual ones counts as if it were so large.
constexpr double kHuber = 3;
constexpr double kErrorRate = 0.02, kLeastError = 1e-3;

}  // namespace

StepCost StepCostModel::cost() const {
  if (steps_ < kMinSteps) return {};
  return cost_of_terms(weights_);
}

void StepCostModel::observe(const StepLoad& load, double measured_us) {
  if (!std::isfinite(measured_us) || measured_us < 0) return;
  const Vector x = cost_terms(load);
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

void StepCostModel::solve() {
  double largest = 0;
  for (int i = 0; i < kTerms; ++i) largest = std::max(largest, moments_[i][i]);
  auto a = moments_;
  Vector b = products_;
  for (int i = 0; i < kTerms; ++i) {
    const double ridge = kRidge * moments_[i][i] + kLeastRidge * largest;
    a[i][i] += ridge;
    b[i] += ridge * weights_[i];
  }
  weights_ = solve_not_negative(a, b);
}

}  // namespace hearth
