// SPDX-License-Identifier: Apache-2.0
// The terms of StepCost as a vector, and least squares over them without negative coefficients. Pure functions.
#pragma once

#include <array>

#include "hearth/schedule/cost_model.h"

namespace hearth {

using CostVector = std::array<double, 5>;
using CostMatrix = std::array<CostVector, 5>;

// Each about 1 in a usual step.
CostVector cost_terms(const StepLoad& load);
StepCost cost_of_terms(const CostVector& weights);

// x >= 0 of a x = b: the most negative term is fixed at 0 and the rest solved again, until none is. REQUIRES: `a` is
// positive definite.
CostVector solve_not_negative(const CostMatrix& a, const CostVector& b);

}  // namespace hearth
