// SPDX-License-Identifier: Apache-2.0
// Local policies: chosen cases by hand, and S1 to S3 and S5 on random states.
#include "hearth/schedule/local_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "hearth/base/random.h"

namespace hearth {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// 10 ms a step, 0.1 ms a prompt token.
constexpr StepCost kCost{.step_us = 10000, .prefill_token_us = 100};

PolicySequence decoding(int64_t due_us) {
  return {.running = true,
          .ready = true,
          .fed = 100,
          .pending = 1,
          .blocks = 7,
          .own_blocks = 7,
          .due_us = due_us,
          .first_out = true};
}
PolicySequence prompt(int64_t tokens, int64_t due_us) { return {.ready = true, .pending = tokens, .due_us = due_us}; }

LocalModel model(const std::vector<PolicySequence>& sequences) {
  return {.sequences = sequences,
          .limits = {.tokens = 1000, .rows = 1000, .sequences = 100, .block_tokens = 16, .free_blocks = 10000},
          .cost = kCost,
          .slo = {.ttft_us = 1'000'000, .tpot_us = 100'000}};
}

Turn slo_turn(const std::vector<LocalModel>& models) { return (*make_local_policy("slo"))->next(models, 0); }

// Its decode takes 10 ms and is due in 70 ms, less a twentieth of 100 ms: 55 ms are left, 550 tokens.
TEST(SloPolicy, AChunkIsAsLargeAsTheRoomThatDecodesLeave) {
  const std::vector<PolicySequence> s{decoding(70'000), prompt(5000, 1'000'000)};
  const Turn turn = slo_turn({model(s)});
  EXPECT_EQ(turn.model, 0);
  EXPECT_EQ(turn.tokens, 1 + 550);
  EXPECT_THAT(turn.order, ElementsAre(0, 1));
}

// The other model's decode comes behind this step and takes 10 ms too: 60 - 5 of margin - 10 - 10 of the step itself.
TEST(SloPolicy, OtherModelsDecodesTakeTheirTime) {
  const std::vector<PolicySequence> s{prompt(5000, 1'000'000)}, other{decoding(60'000)};
  const Turn turn = slo_turn({model(s), model(other)});
  EXPECT_EQ(turn.model, 0);
  EXPECT_EQ(turn.tokens, 350);
}

// Both would end within 790 ms, which is less than 2.5 % of TTFT before they are due: what can be on time for certain is
// the shorter one.
TEST(SloPolicy, FirstTokensAreNotPlannedJustInTime) {
  const std::vector<PolicySequence> tight{prompt(5000, 800'000), prompt(2700, 800'000)};
  EXPECT_EQ(slo_turn({model(tight)}).order.front(), 1);
  const std::vector<PolicySequence> wide{prompt(5000, 830'000), prompt(2700, 830'000)};
  EXPECT_EQ(slo_turn({model(wide)}).order.front(), 0);
}

// Hundreds of prompts that were found late wait in front of one that can be on time.
TEST(SloPolicy, LatePromptsHideNobodyBehindThem) {
  std::vector<PolicySequence> s(1000, prompt(50, -1'000'000));
  for (PolicySequence& late : s) late.late = true;
  s.push_back(prompt(100, 1'000'000));
  const Turn turn = slo_turn({model(s)});
  EXPECT_EQ(turn.model, 0);
  ASSERT_FALSE(turn.order.empty());
  EXPECT_EQ(turn.order.front(), 1000);
  EXPECT_THAT(turn.order, Contains(0)) << "late ones come behind it";
}

TEST(SloPolicy, WithoutRoomTheMostUrgentDecodesGo) {
  const std::vector<PolicySequence> s{decoding(50'000), prompt(500, 1'000'000)}, other{decoding(25'000)};
  const Turn turn = slo_turn({model(s), model(other)});
  EXPECT_EQ(turn.model, 1);
  EXPECT_EQ(turn.tokens, 1);
}

TEST(SloPolicy, TheHopelessAreNamedAndComeLast) {
  // 100 ms of prefill and 10 of the step, due in 50.
  const std::vector<PolicySequence> s{prompt(1000, 50'000), prompt(100, 500'000)};
  const Turn turn = slo_turn({model(s)});
  EXPECT_THAT(turn.hopeless, ElementsAre(Hopeless{0, 0}));
  EXPECT_THAT(turn.order, ElementsAre(1, 0));
}

// In the order of their arrival: who asked for too much does not wait for all who asked for nothing.
TEST(SloPolicy, TheHopelessTakeTurnsWithThoseThatHaveNoTarget) {
  const std::vector<PolicySequence> s{prompt(1000, 50'000), prompt(100, kNoDue), prompt(100, 500'000)};
  EXPECT_THAT(slo_turn({model(s)}).order, ElementsAre(2, 0, 1));
  const std::vector<PolicySequence> other{prompt(100, kNoDue), prompt(1000, 50'000), prompt(100, 500'000)};
  EXPECT_THAT(slo_turn({model(other)}).order, ElementsAre(2, 0, 1));
}

TEST(SloPolicy, WithoutTargetsItIsFcfs) {
  const std::vector<PolicySequence> s{decoding(kNoDue), prompt(100, kNoDue)};
  LocalModel a = model(s), b = model(s);
  a.last_turn = 5;
  b.last_turn = 4;
  const Turn turn = slo_turn({a, b});
  EXPECT_EQ(turn.model, 1);
  EXPECT_EQ(turn.tokens, 1000);
  b.service = 1;
  EXPECT_EQ(slo_turn({a, b}).model, 0) << "the least served comes first";
}

// tau of a prompt of 512: (10 + 51.2) / 512 ms = 119.5 us. All of 1,500 tokens in one batch would take 179 ms; without
// the longest 60 ms, and the last one is due in 100 ms.
TEST(FineServePolicy, TheLongestIsSetAside) {
  const std::vector<PolicySequence> s{prompt(1000, 2'000'000), prompt(300, 500'000), prompt(200, 100'000)};
  const Turn turn = (*make_local_policy("fineserve"))->next(std::vector<LocalModel>{model(s)}, 0);
  EXPECT_THAT(turn.order, ElementsAre(1, 2));
  EXPECT_THAT(turn.hopeless, IsEmpty());
}

TEST(FineServePolicy, TheHopelessAreDropped) {
  const std::vector<PolicySequence> s{prompt(1000, 100'000), prompt(300, 500'000)};
  const Turn turn = (*make_local_policy("fineserve"))->next(std::vector<LocalModel>{model(s)}, 0);
  EXPECT_THAT(turn.hopeless, ElementsAre(Hopeless{0, 0}));
  EXPECT_THAT(turn.order, ElementsAre(1));
}

std::vector<PolicySequence> random_sequences(Random& random) {
  std::vector<PolicySequence> s;
  for (int64_t i = random.below(12); i > 0; --i) {
    PolicySequence x;
    x.running = random.below(2) == 0;
    x.first_out = random.below(2) == 0;
    x.ready = random.below(4) != 0;
    x.fed = x.running ? random.below(500) : 0;
    x.pending = x.running && random.below(2) == 0 ? 1 : random.below(800);
    x.blocks = x.own_blocks = (x.fed + 15) / 16;
    x.due_us = random.below(5) == 0 ? kNoDue : random.below(2'000'000);
    x.late = random.below(5) == 0;
    s.push_back(x);
  }
  return s;
}

TEST(LocalPolicy, KeepsItsInvariantsOnRandomStates) {
  constexpr uint64_t kSeed = 21;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  int turns = 0;
  for (int round = 0; round < 20000; ++round) {
    SCOPED_TRACE(round);
    std::vector<std::vector<PolicySequence>> sequences(static_cast<size_t>(1 + random.below(4)));
    std::vector<LocalModel> models;
    for (auto& s : sequences) {
      s = random_sequences(random);
      models.push_back(model(s));
      models.back().skip = random.below(5) == 0;
      models.back().last_turn = random.below(100);
      models.back().limits.free_blocks = random.below(100);
      models.back().limits.tokens = 1 + random.below(600);
      if (random.below(4) == 0) models.back().cost = {};
    }
    const int64_t now_us = random.below(1'000'000);
    for (const char* name : {"slo", "fcfs", "fineserve"}) {
      SCOPED_TRACE(name);
      const auto policy = make_local_policy(name).value();
      const Turn turn = policy->next(models, now_us);
      // S3
      ASSERT_EQ(turn.model >= 0, std::ranges::any_of(models, has_ready));
      if (turn.model < 0) continue;
      ++turns;
      const auto& chosen = models[static_cast<size_t>(turn.model)];
      ASSERT_FALSE(chosen.skip);
      ASSERT_LE(turn.tokens, chosen.limits.tokens);
      // S1
      const std::set<int64_t> named(turn.order.begin(), turn.order.end());
      ASSERT_EQ(named.size(), turn.order.size());
      for (int64_t i = 0; i < std::ssize(chosen.sequences); ++i) {
        const PolicySequence& s = chosen.sequences[static_cast<size_t>(i)];
        // S2
        ASSERT_TRUE(!s.running || !s.ready || named.count(i) > 0) << i;
      }
      if (!named.empty()) {
        ASSERT_GE(*named.begin(), 0);
        ASSERT_LT(*named.rbegin(), std::ssize(chosen.sequences));
      }
      for (const Hopeless& h : turn.hopeless)
        ASSERT_FALSE(models[static_cast<size_t>(h.model)].sequences[static_cast<size_t>(h.sequence)].running);
      // S5
      const Turn again = policy->next(models, now_us);
      ASSERT_EQ(again.model, turn.model);
      ASSERT_EQ(again.order, turn.order);
      ASSERT_EQ(again.tokens, turn.tokens);
    }
  }
  EXPECT_GT(turns, 40000);
}

}  // namespace
}  // namespace hearth
