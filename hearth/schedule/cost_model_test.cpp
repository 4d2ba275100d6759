// SPDX-License-Identifier: Apache-2.0
// The cost model against machines whose cost is known.
#include "hearth/schedule/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "hearth/base/random.h"

namespace hearth {
namespace {

StepCostModel::Features random_step(Random& random) {
  const bool prefill = random.below(4) == 0;
  const double tokens = static_cast<double>(prefill ? 64 + random.below(448) : 1 + random.below(64));
  return {.tokens = tokens,
          .context_tokens = tokens * static_cast<double>(1 + random.below(1000)),
          .logit_rows = static_cast<double>(1 + random.below(64))};
}

double linear_us(const StepCostModel::Features& f) {
  return 300 + 40 * f.tokens + 0.02 * f.context_tokens + 15 * f.logit_rows;
}

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
  EXPECT_LT(worst, 0.1);
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
  EXPECT_EQ(model.predict_us({.tokens = 10}), 0);
  model.observe({.tokens = 10}, 1000);
  EXPECT_EQ(model.predict_us({.tokens = 10}), 0);
}

// The same step for ever excites one direction only; the others must not blow up.
TEST(StepCostModel, StaysFiniteWhereNothingChanges) {
  StepCostModel model;
  for (int i = 0; i < 100000; ++i) model.observe({.tokens = 8, .context_tokens = 800, .logit_rows = 8}, 1000);
  EXPECT_NEAR(model.predict_us({.tokens = 8, .context_tokens = 800, .logit_rows = 8}), 1000, 1);
  model.observe({.tokens = 8, .context_tokens = 800, .logit_rows = 8}, std::nan(""));
  EXPECT_NEAR(model.predict_us({.tokens = 8, .context_tokens = 800, .logit_rows = 8}), 1000, 1);
  const double other = model.predict_us({.tokens = 512, .context_tokens = 100000, .logit_rows = 64});
  EXPECT_TRUE(std::isfinite(other) && other >= 0) << other;
}

}  // namespace
}  // namespace hearth
