// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/step_spread.h"

#include <algorithm>

#include "hearth/base/check.h"

namespace hearth {

StepSpread::StepSpread(const StepCost& cost, std::span<const StepObservation> steps) {
  for (const StepObservation& step : steps)
    if (const double predicted = cost.us(step.load); predicted > 0) steps_.emplace_back(predicted, step.us / predicted);
  std::ranges::sort(steps_);
}

double StepSpread::draw(double predicted_us, Random& random) const {
  HEARTH_CHECK(!empty(), "a spread of no steps");
  const int64_t near = std::min(kNear, std::ssize(steps_));
  const auto predicted = [&](int64_t i) { return steps_[static_cast<size_t>(i)].first; };
  const auto place = [&](double us, auto&& bound) { return bound(steps_, us, {}, &Step::first) - steps_.begin(); };
  // The window's begin: as long as what it would leave is farther away than what it would take in.
  int64_t begin = 0, last = std::ssize(steps_) - near;
  while (begin < last) {
    const int64_t middle = (begin + last) / 2;
    if (predicted_us - predicted(middle) > predicted(middle + near) - predicted_us)
      begin = middle + 1;
    else
      last = middle;
  }
  // Of equal ones all.
  const int64_t end = place(predicted(begin + near - 1), std::ranges::upper_bound);
  begin = place(predicted(begin), std::ranges::lower_bound);
  return steps_[static_cast<size_t>(begin + random.below(end - begin))].second;
}

}  // namespace hearth
