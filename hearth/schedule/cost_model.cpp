// SPDX-License-Identifier: Apache-2.0
// Recursive least squares on four scaled terms.
#include "hearth/schedule/cost_model.h"

#include <algorithm>
#include <cmath>

namespace hearth {
namespace {

// An observation's weight halves in about 350 steps: clocks and neighbours change, shapes do not.
constexpr double kForgetting = 0.998;
constexpr double kStartVariance = 1e6;
constexpr double kMaxVariance = 1e9;

}  // namespace

// Scaled so that all terms are about 1 in a usual step, which keeps the covariance well conditioned.
StepCostModel::Vector StepCostModel::terms(const Features& f) {
  return {1.0, f.tokens / 64, f.context_tokens / 65536, f.logit_rows / 64};
}

double StepCostModel::predict_us(const Features& features) const {
  if (steps_ < kMinSteps) return 0;
  const Vector x = terms(features);
  double sum = 0;
  for (int i = 0; i < kTerms; ++i) sum += weights_[i] * x[i];
  return std::max(sum, 0.0);
}

void StepCostModel::observe(const Features& features, double measured_us) {
  if (!std::isfinite(measured_us) || measured_us < 0) return;
  if (steps_++ == 0)
    for (int i = 0; i < kTerms; ++i) covariance_[i][i] = kStartVariance;
  const Vector x = terms(features);
  Vector px{};
  double residual = measured_us, scale = kForgetting;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) px[i] += covariance_[i][j] * x[j];
    residual -= weights_[i] * x[i];
  }
  for (int i = 0; i < kTerms; ++i) scale += x[i] * px[i];
  double trace = 0;
  for (int i = 0; i < kTerms; ++i) {
    weights_[i] += px[i] / scale * residual;
    for (int j = 0; j < kTerms; ++j) covariance_[i][j] -= px[i] * px[j] / scale;
    trace += covariance_[i][i];
  }
  // Forgetting makes directions that no step excites grow without end; stop before they drown the others.
  if (trace / kForgetting < kMaxVariance)
    for (Vector& row : covariance_)
      for (double& value : row) value /= kForgetting;
}

}  // namespace hearth
