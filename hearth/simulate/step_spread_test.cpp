// SPDX-License-Identifier: Apache-2.0
#include "hearth/simulate/step_spread.h"

#include <gtest/gtest.h>

#include "hearth/simulate/simulator.h"

namespace hearth {
namespace {

// Predicted to be 1 ms for each sequence. Those of 1 take twice that or nothing more, those of 10 a tenth more.
std::vector<StepObservation> steps() {
  std::vector<StepObservation> steps;
  for (int i = 0; i < 100; ++i) {
    steps.push_back({{.sequences = 1}, i % 2 == 0 ? 1000.0 : 2000.0});
    steps.push_back({{.sequences = 10}, 11000});
  }
  return steps;
}

constexpr StepCost kCost{.sequence_us = 1000};

TEST(StepSpread, IsThatOfStepsOfAboutThatSize) {
  const StepSpread spread(kCost, steps());
  Random random(5);
  int twice = 0;
  for (int i = 0; i < 1000; ++i) {
    const double factor = spread.draw(1200, random);
    EXPECT_TRUE(factor == 1 || factor == 2) << factor;
    twice += factor == 2;
    EXPECT_DOUBLE_EQ(spread.draw(9000, random), 1.1);
    EXPECT_DOUBLE_EQ(spread.draw(1e6, random), 1.1);
  }
  EXPECT_NEAR(twice, 500, 80);
}

// 1,000 tokens one after the other take 1.5 ms each on average.
TEST(StepSpread, ASimulatedStepTakesIt) {
  Load load;
  load.pool_bytes = int64_t{64} << 20;
  LoadModel model{.name = "m", .layers = 1, .kv_token_bytes = 64, .cost = kCost};
  model.spread = StepSpread(kCost, steps());
  load.models.push_back(model);
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 1, .output_tokens = 1000}};
  const auto outcome = simulate(load, requests, {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_NEAR(outcome->busy * load.seconds, 1.5, 0.07);
}

}  // namespace
}  // namespace hearth
