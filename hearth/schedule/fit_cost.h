// SPDX-License-Identifier: Apache-2.0
// The StepCost of a machine from steps that it ran, all of them at once: what StepCostModel learns while steps come,
// for files of them. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/schedule/cost_model.h"

namespace hearth {

struct StepObservation {
  StepLoad load;
  double us = 0;
};

struct CostFit {
  StepCost cost;
  int64_t steps = 0;
  // |predicted - measured| / measured
  double median_error = 0, p90_error = 0;
  double total_error = 0;  // (sum of predicted - sum of measured) / sum of measured
};

// Least squares of relative errors, coefficients >= 0; a step whose error is beyond three usual ones counts as if it
// were that (Huber), found by weighing again. Without steps all is 0.
CostFit fit_step_cost(std::span<const StepObservation> steps);

}  // namespace hearth
