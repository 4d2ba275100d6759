// SPDX-License-Identifier: Apache-2.0
// How long a step takes: linear in what is in it, learned from the steps before. One owning thread.
#pragma once

#include <array>
#include <cstdint>

namespace hearth {

// What decides how long a step takes.
struct StepLoad {
  double prefill_tokens = 0;  // fed, but for each sequence's last known one
  double sequences = 0;
  double context_tokens = 0;  // sum over sequences: what attention reads
  double prefill_pairs = 0;   // sum over prefill tokens of what each attends to: what attention computes
};

// The time of a step of one model; nothing is negative.
struct StepCost {
  double step_us = 0;  // whatever is in it: weights are read once
  double prefill_token_us = 0;
  double sequence_us = 0;
  double context_token_us = 0;
  double prefill_pair_us = 0;

  double us(const StepLoad& load) const {
    return step_us + prefill_token_us * load.prefill_tokens + sequence_us * load.sequences +
           context_token_us * load.context_tokens + prefill_pair_us * load.prefill_pairs;
  }
};

// Least squares with forgetting (Ljung, "System Identification", 2nd ed., section 11.2) of relative errors, with
// coefficients that are not negative.
//   - A step that is far off what was expected counts less (Huber, "Robust Statistics", section 7): one
//     stall of the machine must not move what is known of it.
//   - What no step has shown apart stays what it was believed to be.
class StepCostModel {
 public:
  // All 0 before kMinSteps steps were seen.
  StepCost cost() const;
  // Microseconds; 0 before kMinSteps steps were seen.
  double predict_us(const StepLoad& load) const { return cost().us(load); }
  void observe(const StepLoad& load, double measured_us);

  static constexpr int64_t kMinSteps = 4;

 private:
  static constexpr int kTerms = 5;
  using Vector = std::array<double, kTerms>;
  void solve();

  int64_t steps_ = 0;
  double error_ = 0.5;                    // usual |relative error|
  std::array<Vector, kTerms> moments_{};  // sum of weight x x^T
  Vector products_{};                     // sum of weight x t
  Vector weights_{};
};

}  // namespace hearth
