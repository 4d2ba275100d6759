// SPDX-License-Identifier: Apache-2.0
// The simulator on loads whose outcome can be computed by hand, and hearth's promises on the committed ones.
#include "hearth/simulate/simulator.h"

#include <gtest/gtest.h>

#include "hearth/simulate/load_file.h"

namespace hearth {
namespace {

// One model, a step takes 10 ms and 1 ms for each prompt token but the last; no noise.
Load plain_load() {
  Load load;
  load.seconds = 100;
  load.pool_bytes = int64_t{64} << 20;
  load.slab_bytes = int64_t{1} << 20;
  LoadModel model;
  model.name = "plain";
  model.layers = 1;
  model.kv_token_bytes = 1024;
  model.cost = {.step_us = 10000, .prefill_token_us = 1000};
  model.slo = {.ttft_us = 200000, .tpot_us = 20000};
  load.models.push_back(model);
  return load;
}

// Alone: the first token after 10 + 99 ms, then 9 steps of 10 ms.
TEST(Simulator, OneRequestTakesItsSteps) {
  const Load load = plain_load();
  const std::vector<LoadRequest> requests{{.arrival_us = 5, .model = 0, .input_tokens = 100, .output_tokens = 10}};
  for (const char* policy : {"slo", "fcfs", "fineserve"}) {
    const auto outcome = simulate(load, requests, {.policy = policy});
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_EQ(outcome->models[0].attained, 1) << policy;
    EXPECT_EQ(outcome->models[0].generated_tokens, 10);
    EXPECT_EQ(outcome->steps, 10);
    EXPECT_NEAR(outcome->models[0].ttft_p50_s, 0.109, 1e-9);
    EXPECT_NEAR(outcome->busy, 0.199 / 100, 1e-9);
  }
}

// The first one's prompt takes until 109 ms; its second token was planned as that step began, until 119. Who comes at
// 50 is in the step after it: until 119 + 10 + 19 ms; in the next one, until 138, where nothing is planned ahead.
TEST(Simulator, WhoComesDuringAStepIsNotInTheNext) {
  Load load = plain_load();
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 100, .output_tokens = 10},
                                          {.arrival_us = 50000, .model = 0, .input_tokens = 20, .output_tokens = 1}};
  for (const int64_t ahead : {0, 1}) {
    load.steps_ahead = ahead;
    const auto outcome = simulate(load, requests, {});
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_NEAR(outcome->models[0].ttft_p50_s, ahead == 0 ? 0.088 : 0.098, 1e-9);  // the lesser of two
    EXPECT_EQ(outcome->models[0].generated_tokens, 11);
    EXPECT_EQ(outcome->steps, 10);
  }
}

// What is learned a step late must not cost more than that: due times of tokens under way and the device's are known
// well enough. It is 0.97 and 0.99 of the requests; it was 0.93 and 0.70 where they were taken from the last step.
TEST(Simulator, PlanningAheadKeepsTheTargets) {
  auto load = read_load("bench/loads/four-models.toml");
  ASSERT_TRUE(load) << load.error().message;
  load->rate = 24;
  const auto requests = draw_requests(*load);
  for (const bool clairvoyant : {false, true}) {
    load->steps_ahead = 0;
    const auto at_once = simulate(*load, requests, {.clairvoyant = clairvoyant});
    load->steps_ahead = 1;
    const auto ahead = simulate(*load, requests, {.clairvoyant = clairvoyant});
    ASSERT_TRUE(at_once && ahead);
    EXPECT_NEAR(ahead->attainment(), at_once->attainment(), 0.01) << clairvoyant << ", seed " << load->seed;
  }
}

// Prompts of 150, 100 and 20 at once, all due after 200 ms, steps of 100 tokens: by arrival none is on time, since each
// step is full. Two can be, and the longest must not ride along with them.
TEST(Simulator, TheMostFirstTokensAreOnTime) {
  Load load = plain_load();
  load.step_tokens = 100;
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 150, .output_tokens = 1},
                                          {.arrival_us = 0, .model = 0, .input_tokens = 100, .output_tokens = 1},
                                          {.arrival_us = 0, .model = 0, .input_tokens = 20, .output_tokens = 1}};
  const auto ours = simulate(load, requests, {.policy = "slo", .clairvoyant = true});
  const auto fcfs = simulate(load, requests, {.policy = "fcfs"});
  ASSERT_TRUE(ours && fcfs);
  EXPECT_EQ(ours->models[0].attained, 2);
  EXPECT_EQ(fcfs->models[0].attained, 0);
  EXPECT_EQ(ours->models[0].unfinished, 0) << "the late one comes last";
}

// Without targets, both with more work than the machine can do.
TEST(Simulator, ModelsShareTheMachineByWeight) {
  Load load = plain_load();
  load.models[0].slo = {};
  load.models.push_back(load.models[0]);
  load.models[1].name = "slower";
  load.models[1].cost.step_us = 25000;
  load.models[0].weight = 3;
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 1, .output_tokens = 20000},
                                          {.arrival_us = 1, .model = 1, .input_tokens = 1, .output_tokens = 20000}};
  const auto outcome = simulate(load, requests, {.policy = "slo", .drain_seconds = 0});
  ASSERT_TRUE(outcome) << outcome.error().message;
  load.models[0].weight = 1;
  const auto even = simulate(load, requests, {.policy = "slo", .drain_seconds = 0});
  ASSERT_TRUE(even) << even.error().message;
  // Of one sequence each: tokens are as time / step.
  const auto ratio = [](const SimulationOutcome& o) {
    return static_cast<double>(o.models[0].generated_tokens) / static_cast<double>(o.models[1].generated_tokens);
  };
  EXPECT_NEAR(ratio(*even), 2.5, 0.05);
  EXPECT_NEAR(ratio(*outcome), 7.5, 0.15);
}

// Blocks of 1 MiB and 16 tokens, eight of them. Two prompts of 48 tokens are fed in 10 + 94 ms; 16 steps later each has
// 64 tokens in 4 blocks, and the younger has to go for the other's next. That one has all its 40 tokens after 39 steps
// of 10 ms, 23 more steps finish the younger: 104 + 390 + 230 ms, and 64 ms for feeding 64 tokens again or copies of 4
// MiB. Copies are worth it below the 10 + 64 ms of a step of its own.
TEST(Simulator, PreemptionCopiesWhereThatIsQuicker) {
  Load load = plain_load();
  load.steps_ahead = 0;
  load.pool_bytes = int64_t{8} << 20;
  load.models[0].kv_token_bytes = int64_t{64} << 10;
  load.models[0].slo = {};
  const LoadRequest request{.arrival_us = 0, .model = 0, .input_tokens = 48, .output_tokens = 40};
  const std::vector<LoadRequest> requests{request, request};
  struct Case {
    int64_t swap_mib;
    double us_per_mib;
    int64_t swapped;
    double seconds;
  };
  for (const Case& c : {Case{0, 1000, 0, 0.788}, Case{4, 1000, 1, 0.728}, Case{3, 1000, 0, 0.788},
                        Case{4, 18000, 1, 0.796}, Case{4, 19000, 0, 0.788}}) {
    SCOPED_TRACE(testing::Message() << c.swap_mib << " MiB at " << c.us_per_mib);
    load.swap_bytes = c.swap_mib << 20;
    load.swap_us_per_mib = c.us_per_mib;
    const auto outcome = simulate(load, requests, {.clairvoyant = true});
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_EQ(outcome->models[0].swapped, c.swapped);
    EXPECT_EQ(outcome->models[0].recomputed, 1 - c.swapped);
    EXPECT_EQ(outcome->models[0].generated_tokens, 80);
    EXPECT_NEAR(outcome->busy * load.seconds, c.seconds, 1e-9);
  }
}

TEST(Simulator, EqualInputsGiveEqualOutcomes) {
  auto load = read_load("bench/loads/four-models.toml");
  ASSERT_TRUE(load) << load.error().message;
  load->seconds = 100;
  const auto requests = draw_requests(*load);
  const auto a = simulate(*load, requests, {}), b = simulate(*load, requests, {});
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->steps, b->steps);
  EXPECT_EQ(a->memory_mean, b->memory_mean);
  EXPECT_EQ(a->attainment(), b->attainment());
}

// Every request ends, and none twice.
TEST(Simulator, EveryRequestEnds) {
  auto load = read_load("bench/loads/four-models.toml");
  ASSERT_TRUE(load) << load.error().message;
  load->seconds = 100;
  load->warmup_seconds = 0;
  load->pool_bytes = int64_t{4} << 30;  // so that there are preemptions
  const auto requests = draw_requests(*load);
  for (const char* policy : {"slo", "fcfs", "fineserve"})
    for (const char* memory : {"slab", "static"}) {
      const auto outcome = simulate(*load, requests, {.policy = policy, .memory = memory, .drain_seconds = 1e6});
      ASSERT_TRUE(outcome) << outcome.error().message;
      int64_t ended = 0, came = 0, wanted = 0, made = 0;
      for (const ModelOutcome& m : outcome->models) {
        came += m.requests;
        EXPECT_EQ(m.unfinished, 0) << policy << " " << memory;
        EXPECT_LE(m.attained, m.requests - m.rejected);
        ended += m.requests - m.rejected;
        made += m.generated_tokens;
      }
      for (const LoadRequest& r : requests) wanted += r.output_tokens;
      EXPECT_EQ(came, std::ssize(requests));
      EXPECT_GT(ended, 0);
      EXPECT_LE(made, wanted);
    }
}

// Issue: five formats under pressure, three seeds: 0.94 on average, 0.88 at the worst moment.
TEST(Simulator, FiveFormatsFillThePool) {
  auto load = read_load("bench/loads/five-formats.toml");
  ASSERT_TRUE(load) << load.error().message;
  for (const uint64_t seed : {1, 2, 3}) {
    load->seed = seed;
    const auto outcome = simulate(*load, draw_requests(*load), {});
    ASSERT_TRUE(outcome) << outcome.error().message;
    EXPECT_GE(outcome->memory_mean, 0.94) << "seed " << seed;
    EXPECT_GE(outcome->memory_worst, 0.88) << "seed " << seed;
    const auto published = simulate(*load, draw_requests(*load), {.memory = "fineserve"});
    ASSERT_TRUE(published) << published.error().message;
    EXPECT_LT(published->memory_mean, outcome->memory_mean);
  }
}

}  // namespace
}  // namespace hearth
