// SPDX-License-Identifier: Apache-2.0
// The cost model against machines whose cost is known.
#include "hearth/schedule/cost_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/base/random.h"

namespace hearth {
namespace {

StepLoad random_step(Random& random) {
  const double prefill = random.below(4) == 0 ? static_cast<double>(64 + random.below(448)) : 0;
  const auto sequences = static_cast<double>(1 + random.below(64));
  return {.prefill_tokens = prefill,
          .sequences = sequences,
          .context_tokens = sequences * static_cast<double>(1 + random.below(2000)),
          .prefill_pairs = prefill * static_cast<double>(1 + random.below(4000))};
}

constexpr StepCost kMachine{
    .step_us = 5000, .prefill_token_us = 35, .sequence_us = 20, .context_token_us = 0.043, .prefill_pair_us = 0.0013};

double linear_us(const StepLoad& load) { return kMachine.us(load); }

TEST(StepCostModel, FindsALinearMachineUnderNoise) {
  constexpr uint64_t kSeed = 3;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  StepCostModel model;
  for (int i = 0; i < 500; ++i) {
    const auto step = random_step(random);
    model.observe(step, linear_us(step) * (1 + 0.03 * random.normal()));
  }
  double worst = 0;
  for (int i = 0; i < 200; ++i) {
    const auto step = random_step(random);
    worst = std::max(worst, std::abs(model.predict_us(step) / linear_us(step) - 1));
  }
  EXPECT_LT(worst, 0.05);
  EXPECT_NEAR(model.cost().step_us, kMachine.step_us, 0.1 * kMachine.step_us);
  EXPECT_NEAR(model.cost().prefill_token_us, kMachine.prefill_token_us, 0.1 * kMachine.prefill_token_us);
}

// Without noise the coefficients themselves come out.
TEST(StepCostModel, FindsTheCoefficientsOfExactData) {
  constexpr uint64_t kSeed = 6;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  StepCostModel model;
  for (int i = 0; i < 1000; ++i) {
    const auto step = random_step(random);
    model.observe(step, linear_us(step));
  }
  const StepCost cost = model.cost();
  EXPECT_NEAR(cost.step_us / kMachine.step_us, 1, 0.01);
  EXPECT_NEAR(cost.prefill_token_us / kMachine.prefill_token_us, 1, 0.01);
  EXPECT_NEAR(cost.sequence_us / kMachine.sequence_us, 1, 0.05);
  EXPECT_NEAR(cost.context_token_us / kMachine.context_token_us, 1, 0.05);
  EXPECT_NEAR(cost.prefill_pair_us / kMachine.prefill_pair_us, 1, 0.05);
}

// One step in 50 takes 20 times as long: what is known of the others stays.
TEST(StepCostModel, StallsCountLittle) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  StepCostModel model;
  for (int i = 0; i < 2000; ++i) {
    const auto step = random_step(random);
    model.observe(step, linear_us(step) * (1 + 0.03 * random.normal()) * (i % 50 == 49 ? 20 : 1));
  }
  for (int i = 0; i < 100; ++i) {
    const auto step = random_step(random);
    EXPECT_NEAR(model.predict_us(step) / linear_us(step), 1, 0.1);
  }
}

// A machine whose cost falls with the tokens would be fitted best by a negative coefficient.
TEST(StepCostModel, NoCoefficientIsNegative) {
  constexpr uint64_t kSeed = 8;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  StepCostModel model;
  for (int i = 0; i < 300; ++i) {
    const auto step = random_step(random);
    model.observe(step, std::max(10.0, 20000 - 20 * step.prefill_tokens - 0.1 * step.context_tokens));
    const StepCost cost = model.cost();
    ASSERT_GE(
        std::min({cost.step_us, cost.prefill_token_us, cost.sequence_us, cost.context_token_us, cost.prefill_pair_us}),
        0);
  }
}

TEST(StepCostModel, FollowsAMachineThatBecomesSlower) {
  constexpr uint64_t kSeed = 4;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  StepCostModel model;
  for (int i = 0; i < 500; ++i) {
    const auto step = random_step(random);
    model.observe(step, linear_us(step));
  }
  for (int i = 0; i < 2000; ++i) {
    const auto step = random_step(random);
    model.observe(step, 2 * linear_us(step));
  }
  const auto step = random_step(random);
  EXPECT_NEAR(model.predict_us(step) / linear_us(step), 2, 0.1);
}

TEST(StepCostModel, SaysNothingBeforeItKnows) {
  StepCostModel model;
  EXPECT_EQ(model.predict_us({.prefill_tokens = 10}), 0);
  model.observe({.prefill_tokens = 10}, 1000);
  EXPECT_EQ(model.predict_us({.prefill_tokens = 10}), 0);
}

// The same step for ever excites one direction only; the others must not blow up.
TEST(StepCostModel, StaysFiniteWhereNothingChanges) {
  StepCostModel model;
  for (int i = 0; i < 100000; ++i) model.observe({.sequences = 8, .context_tokens = 800}, 1000);
  EXPECT_NEAR(model.predict_us({.sequences = 8, .context_tokens = 800}), 1000, 1);
  model.observe({.sequences = 8, .context_tokens = 800}, std::nan(""));
  EXPECT_NEAR(model.predict_us({.sequences = 8, .context_tokens = 800}), 1000, 1);
  const double other = model.predict_us({.prefill_tokens = 512, .sequences = 64, .context_tokens = 100000});
  EXPECT_TRUE(std::isfinite(other) && other >= 0) << other;
}

}  // namespace
}  // namespace hearth
