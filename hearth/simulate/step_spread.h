// SPDX-License-Identifier: Apache-2.0
// StepSpread: by how much a machine's steps differ from what was fitted to them: stalls, other work on the machine, and
// whatever a sum of five terms does not say. A step of the simulator takes as much more or less as one of the steps
// that were predicted to take about as long did.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/schedule/fit_cost.h"

namespace hearth {

class StepSpread {
 public:
  // Steps take what is predicted.
  StepSpread() = default;
  StepSpread(const StepCost& cost, std::span<const StepObservation> steps);

  bool empty() const { return steps_.empty(); }
  // Measured / predicted of one of the kNear steps, or more that are as near, whose predictions are nearest to this
  // one. REQUIRES: not empty.
  double draw(double predicted_us, Random& random) const;

  static constexpr int64_t kNear = 64;

 private:
  using Step = std::pair<double, double>;
  std::vector<Step> steps_;  // predicted, measured / predicted; by predicted
};

}  // namespace hearth
