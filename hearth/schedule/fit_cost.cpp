// SPDX-License-Identifier: Apache-2.0
// Normal equations, solved again with the weights that the last errors give.
#include "hearth/schedule/fit_cost.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/schedule/cost_terms.h"

namespace hearth {
namespace {

constexpr int kRounds = 12;
constexpr double kHuber = 3, kLeastError = 1e-3;
// So that terms which no step shows apart have an answer: small beside what any step says.
constexpr double kRidge = 1e-9;

// Nearest rank. Reorders.
double quantile(std::vector<double>& values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

CostFit fit_step_cost(std::span<const StepObservation> steps) {
  CostFit fit{.steps = std::ssize(steps)};
  if (steps.empty()) return fit;
  std::vector<double> errors(steps.size(), 0);
  double usual = 0;  // error
  for (int round = 0; round < kRounds; ++round) {
    CostMatrix a{};
    CostVector b{};
    for (size_t i = 0; i < steps.size(); ++i) {
      const double us = std::max(steps[i].us, 1.0);
      const double limit = kHuber * usual;
      // Relative to what is expected: relative to what was measured, slow steps would count less than fast ones.
      const double expected_us = round > 0 ? std::max(fit.cost.us(steps[i].load), 1.0) : us;
      const double weight = (round > 0 && errors[i] > limit ? limit / errors[i] : 1) / (expected_us * expected_us);
      const CostVector x = cost_terms(steps[i].load);
      for (size_t r = 0; r < 5; ++r) {
        for (size_t c = 0; c < 5; ++c) a[r][c] += weight * x[r] * x[c];
        b[r] += weight * x[r] * us;
      }
    }
    double largest = 0;
    for (size_t i = 0; i < 5; ++i) largest = std::max(largest, a[i][i]);
    for (size_t i = 0; i < 5; ++i) a[i][i] += kRidge * largest;
    fit.cost = cost_of_terms(solve_not_negative(a, b));
    for (size_t i = 0; i < steps.size(); ++i) {
      const double expected_us = std::max(fit.cost.us(steps[i].load), 1.0);
      errors[i] = std::abs(expected_us - steps[i].us) / expected_us;
    }
    std::vector<double> sorted = errors;
    usual = std::max(quantile(sorted, 0.5), kLeastError);
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    const double us = std::max(steps[i].us, 1.0);
    errors[i] = std::abs(fit.cost.us(steps[i].load) - us) / us;
  }
  fit.median_error = quantile(errors, 0.5), fit.p90_error = quantile(errors, 0.9);
  double predicted = 0, measured = 0;
  for (const StepObservation& step : steps) predicted += fit.cost.us(step.load), measured += step.us;
  fit.total_error = measured > 0 ? (predicted - measured) / measured : 0;
  return fit;
}

}  // namespace hearth
