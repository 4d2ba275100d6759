// SPDX-License-Identifier: Apache-2.0
// How long a step will take, learned from the steps before: a linear model of a step's features by recursive
// least squares with forgetting (Ljung, "System Identification", 2nd ed., section 11.2). One owning thread.
#pragma once

#include <array>
#include <cstdint>

namespace hearth {

class StepCostModel {
 public:
  // Cost grows with these; a constant is added.
  struct Features {
    double tokens = 0;          // fed
    double context_tokens = 0;  // sum over fed tokens of what each attends to
    double logit_rows = 0;
  };

  // Microseconds; 0 before kMinSteps steps were seen. Never negative.
  double predict_us(const Features& features) const;
  void observe(const Features& features, double measured_us);

  static constexpr int64_t kMinSteps = 4;

 private:
  static constexpr int kTerms = 4;
  using Vector = std::array<double, kTerms>;
  static Vector terms(const Features& features);

  int64_t steps_ = 0;
  Vector weights_{};
  std::array<Vector, kTerms> covariance_{};  // set up at the first step
};

}  // namespace hearth
