// SPDX-License-Identifier: Apache-2.0
// Fits of steps whose cost is known.
#include "hearth/schedule/fit_cost.h"

#include <gtest/gtest.h>

#include <vector>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr StepCost kMachine{
    .step_us = 5000, .prefill_token_us = 35, .sequence_us = 20, .context_token_us = 0.043, .prefill_pair_us = 0.0013};

std::vector<StepObservation> steps_of(uint64_t seed, double noise, double stalls) {
  Random random(seed);
  std::vector<StepObservation> steps;
  for (int i = 0; i < 4000; ++i) {
    const double prefill = random.below(4) == 0 ? static_cast<double>(64 + random.below(448)) : 0;
    const auto sequences = static_cast<double>(1 + random.below(64));
    const StepLoad load{.prefill_tokens = prefill,
                        .sequences = sequences,
                        .context_tokens = sequences * static_cast<double>(1 + random.below(2000)),
                        .prefill_pairs = prefill * static_cast<double>(1 + random.below(4000))};
    const double stall = random.uniform(0, 1) < stalls ? 20 : 1;
    steps.push_back({load, kMachine.us(load) * stall * (1 + noise * random.normal())});
  }
  return steps;
}

void expect_machine(const StepCost& cost, double share) {
  EXPECT_NEAR(cost.step_us / kMachine.step_us, 1, share);
  EXPECT_NEAR(cost.prefill_token_us / kMachine.prefill_token_us, 1, share);
  EXPECT_NEAR(cost.sequence_us / kMachine.sequence_us, 1, 3 * share);
  EXPECT_NEAR(cost.context_token_us / kMachine.context_token_us, 1, share);
  EXPECT_NEAR(cost.prefill_pair_us / kMachine.prefill_pair_us, 1, 3 * share);
}

TEST(FitCost, FindsTheCoefficientsOfExactData) {
  const CostFit fit = fit_step_cost(steps_of(31, 0, 0));
  expect_machine(fit.cost, 1e-3);
  EXPECT_LT(fit.p90_error, 1e-3);
  EXPECT_NEAR(fit.total_error, 0, 1e-3);
}

// One step in fifty takes twenty times as long: that is the machine's neighbours, not its cost.
TEST(FitCost, StallsDoNotMoveIt) {
  const CostFit fit = fit_step_cost(steps_of(32, 0.05, 0.02));
  expect_machine(fit.cost, 0.05);
  EXPECT_LT(fit.median_error, 0.06);
  EXPECT_LT(fit.total_error, -0.2) << "the stalls are not in the fit, and it says so";
}

TEST(FitCost, NothingIsNegativeAndNothingIsMadeOfNothing) {
  EXPECT_EQ(fit_step_cost({}).cost.step_us, 0);
  // Decodes of one length alone: their terms cannot be told apart, their sum can.
  std::vector<StepObservation> steps(100, {{.sequences = 8, .context_tokens = 800}, 1000});
  const CostFit fit = fit_step_cost(steps);
  EXPECT_NEAR(fit.cost.us(steps[0].load), 1000, 1);
  for (const double c : {fit.cost.step_us, fit.cost.prefill_token_us, fit.cost.sequence_us, fit.cost.context_token_us,
                         fit.cost.prefill_pair_us})
    EXPECT_GE(c, 0);
}

}  // namespace
}  // namespace hearth
