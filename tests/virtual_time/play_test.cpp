// SPDX-License-Identifier: Apache-2.0
// Times that arithmetic gives, kept by the real engine; and that a play is one, however threads are run.
#include "tests/virtual_time/play.h"

#include <gtest/gtest.h>

#include "hearth/simulate/load_file.h"

namespace hearth::virtual_time {
namespace {

constexpr int64_t kMs = 1'000'000;

// One model: a step takes 10 ms, 1 ms for each prompt token but the last, and 2 ms for a sequence; no noise.
Load plain_load() {
  Load load;
  load.seconds = 100;
  load.pool_bytes = int64_t{64} << 20;
  LoadModel model;
  model.name = "plain";
  model.layers = 1;
  model.kv_token_bytes = 4096;
  model.cost = {.step_us = 10000, .prefill_token_us = 1000, .sequence_us = 2000};
  model.slo = {.ttft_us = 2'000'000, .tpot_us = 200'000};
  load.models.push_back(model);
  return load;
}

// 99 tokens of a prompt with 99 * 100 / 2 pairs, in a context of 100; then contexts of 101 to 109.
TEST(VirtualTime, AStepTakesWhatItsTermsSay) {
  Load load = plain_load();
  load.models[0].cost.context_token_us = 10;
  load.models[0].cost.prefill_pair_us = 1;
  const std::vector<LoadRequest> requests{{.arrival_us = 5, .model = 0, .input_tokens = 100, .output_tokens = 10}};
  const auto out = play(load, requests, {});
  ASSERT_TRUE(out) << out.error().message;
  constexpr int64_t kFirstUs = 10000 + 99 * 1000 + 2000 + 10 * 100 + 4950;
  constexpr int64_t kOthersUs = 9 * 12000 + 10 * (101 + 109) * 9 / 2;
  EXPECT_EQ(out->answers[0].first_ns, (5 + kFirstUs) * 1000);
  EXPECT_EQ(out->answers[0].last_ns, (5 + kFirstUs + kOthersUs) * 1000);
  EXPECT_EQ(out->answers[0].tokens, 10);
  EXPECT_EQ(out->told.steps, 10);
  EXPECT_EQ(out->told.models[0].attained, 1);
  EXPECT_NEAR(out->told.busy, 1e-6 * (kFirstUs + kOthersUs) / 100, 1e-12);
}

// The second comes while the first's prompt is computed. The step behind that is planned already: it is in the next one.
TEST(VirtualTime, AStepIsPlannedWhileTheOneBeforeRuns) {
  const Load load = plain_load();
  const std::vector<LoadRequest> requests{
      {.arrival_us = 0, .model = 0, .input_tokens = 100, .output_tokens = 10},
      {.arrival_us = 50000, .model = 0, .input_tokens = 40, .output_tokens = 3},
  };
  for (const char* schedule : {"fcfs", "slo"}) {
    SCOPED_TRACE(schedule);
    const auto out = play(load, requests, {.schedule = schedule});
    ASSERT_TRUE(out) << out.error().message;
    const int64_t first = 111, second = first + 12, both = second + 10 + 2 * 2 + 39;
    EXPECT_EQ(out->answers[0].first_ns, first * kMs);
    EXPECT_EQ(out->answers[1].first_ns, both * kMs);
    EXPECT_EQ(out->answers[1].last_ns, (both + 2 * 14) * kMs);
    // Of ten tokens three are there with `both`, two more beside the second.
    EXPECT_EQ(out->answers[0].last_ns, (both + 2 * 14 + 5 * 12) * kMs);
  }
}

// 100, 100 and 50 tokens, of which the last is no token of a prompt.
TEST(VirtualTime, ALongPromptTakesSeveralSteps) {
  Load load = plain_load();
  load.step_tokens = 100;
  load.max_sequences = 8;
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 250, .output_tokens = 1}};
  const auto out = play(load, requests, {});
  ASSERT_TRUE(out) << out.error().message;
  EXPECT_EQ(out->answers[0].first_ns, (112 + 112 + 61) * kMs);
  EXPECT_EQ(out->told.steps, 3);
}

// Two models, each with a part of 16 blocks. Three prompts of a that need 10 blocks each come at once: in parts of its own
// one runs at a time, in one pool all do.
TEST(VirtualTime, AFixedPartIsFullWhereThePoolIsNot) {
  Load load = plain_load();
  load.models.push_back(load.models[0]);
  load.models[0].name = "a";
  load.models[1].name = "b";
  load.pool_bytes = int64_t{32} * 16 * 4096;
  const std::vector<LoadRequest> requests(3, {.arrival_us = 0, .model = 0, .input_tokens = 145, .output_tokens = 10});
  const auto parts = play(load, requests, {.schedule = "fcfs", .static_parts = true});
  const auto shared = play(load, requests, {.schedule = "fcfs"});
  ASSERT_TRUE(parts && shared);
  // One after the other: a prompt's step of 10 + 144 + 2 ms, nine of 12.
  const int64_t alone = 156 + 9 * 12;
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(parts->answers[static_cast<size_t>(i)].last_ns, (i + 1) * alone * kMs) << i;
  // Behind the first prompt's step and the one that was planned with it: a decode and two prompts; then seven steps of
  // three sequences, and two of the two that have tokens to come.
  EXPECT_EQ(shared->answers[2].last_ns, (156 + 12 + (10 + 3 * 2 + 2 * 144) + 7 * 16 + 2 * 14) * kMs);
  EXPECT_EQ(parts->told.models[0].recomputed + shared->told.models[0].recomputed, 0);
}

TEST(VirtualTime, WhatCanNeverFitIsRejected) {
  Load load = plain_load();
  load.pool_bytes = int64_t{16} * 16 * 4096;
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 250, .output_tokens = 10},
                                          {.arrival_us = 1, .model = 0, .input_tokens = 240, .output_tokens = 10}};
  const auto out = play(load, requests, {});
  ASSERT_TRUE(out) << out.error().message;
  EXPECT_TRUE(out->answers[0].rejected);
  EXPECT_FALSE(out->answers[1].rejected);
  EXPECT_EQ(out->answers[1].tokens, 10);
}

// Models take turns, whoever is late: a token that is under way is no reason to be more urgent.
TEST(VirtualTime, LateSequencesOfTwoModelsTakeTurns) {
  Load load = plain_load();
  load.models[0].slo.ttft_us = 1000;  // always late
  load.models.push_back(load.models[0]);
  load.models[0].name = "a";
  load.models[1].name = "b";
  const std::vector<LoadRequest> requests{{.arrival_us = 0, .model = 0, .input_tokens = 10, .output_tokens = 50},
                                          {.arrival_us = 1, .model = 1, .input_tokens = 10, .output_tokens = 50}};
  const auto out = play(load, requests, {});
  ASSERT_TRUE(out) << out.error().message;
  ASSERT_EQ(out->steps.size(), 100u);
  // Behind the steps from which costs are learned.
  for (size_t i = 20; i + 20 < out->steps.size(); ++i) EXPECT_NE(out->steps[i].model, out->steps[i + 1].model) << i;
}

TEST(VirtualTime, EqualInputsGiveEqualOutcomes) {
  auto load = read_load("bench/loads/four-models.toml");
  ASSERT_TRUE(load) << load.error().message;
  load->rate = 24;
  load->seconds = 10;
  load->warmup_seconds = 0;
  load->pool_bytes = int64_t{4} << 30;  // so that there are preemptions
  const auto requests = draw_requests(*load);
  const auto a = play(*load, requests, {}), b = play(*load, requests, {});
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->answers, b->answers);
  EXPECT_EQ(a->told.steps, b->told.steps);
  int64_t preemptions = 0;
  for (size_t m = 0; m < load->models.size(); ++m) {
    // The engine's own count is the same.
    EXPECT_EQ(a->counted[m].attained, a->told.models[m].attained);
    EXPECT_EQ(a->counted[m].answers, a->told.models[m].requests - a->told.models[m].unfinished);
    preemptions += a->told.models[m].recomputed;
  }
  EXPECT_GT(preemptions, 0);
  load->seed = 2;
  const auto other = play(*load, requests, {});
  ASSERT_TRUE(other);
  EXPECT_NE(a->answers, other->answers);
}

}  // namespace
}  // namespace hearth::virtual_time
