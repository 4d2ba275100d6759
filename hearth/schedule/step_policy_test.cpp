// SPDX-License-Identifier: Apache-2.0
// The step policy: chosen cases by hand, and its properties P1 to P4 on random states.
#include "hearth/schedule/step_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr int64_t kBlock = 16;

int64_t blocks_for(int64_t tokens) { return (tokens + kBlock - 1) / kBlock; }

PolicySequence decoding(int64_t fed) {
  return {.running = true,
          .ready = true,
          .in_flight = true,
          .fed = fed,
          .pending = 1,
          .blocks = blocks_for(fed),
          .own_blocks = blocks_for(fed)};
}
PolicySequence waiting(int64_t prompt) { return {.ready = true, .pending = prompt}; }

PolicyLimits limits(int64_t free_blocks) {
  return {.tokens = 64, .rows = 16, .sequences = 4, .block_tokens = kBlock, .free_blocks = free_blocks};
}

std::vector<std::pair<int64_t, int64_t>> feeds(const StepChoice& choice) {
  std::vector<std::pair<int64_t, int64_t>> out;
  for (const StepFeed& feed : choice.feeds) out.emplace_back(feed.sequence, feed.tokens);
  return out;
}

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(StepPolicy, DecodesGoFirstAndPromptsFillTheRest) {
  const std::vector<PolicySequence> s = {waiting(200), decoding(20), decoding(31)};
  EXPECT_THAT(feeds(choose_step(s, limits(100))), ElementsAre(Pair(1, 1), Pair(2, 1), Pair(0, 62)));
}

TEST(StepPolicy, NoPromptStartsWithoutBlocksForAllOfIt) {
  const std::vector<PolicySequence> s = {waiting(200), waiting(16)};
  const StepChoice choice = choose_step(s, limits(12));
  EXPECT_THAT(feeds(choice), IsEmpty()) << "the second must not pass the first";
  EXPECT_TRUE(choice.short_of_blocks);
  EXPECT_THAT(feeds(choose_step(s, limits(13))), ElementsAre(Pair(0, 64)));
}

TEST(StepPolicy, ARowForEachTokenBoundsTheChunk) {
  std::vector<PolicySequence> s = {decoding(3), waiting(200)};
  s[1].row_per_token = true;
  EXPECT_THAT(feeds(choose_step(s, limits(100))), ElementsAre(Pair(0, 1), Pair(1, 15)));
}

TEST(StepPolicy, TheYoungestGivesItsBlocksUp) {
  std::vector<PolicySequence> s = {decoding(32), decoding(30), decoding(30)};
  s[2].in_flight = false;
  const StepChoice choice = choose_step(s, limits(0));
  EXPECT_THAT(choice.preempted, ElementsAre(2));
  EXPECT_THAT(feeds(choice), ElementsAre(Pair(0, 1), Pair(1, 1)));
}

// P2
TEST(StepPolicy, AVictimInFlightIsLeftOutUntilItCanBePreempted) {
  std::vector<PolicySequence> s = {decoding(32), decoding(30)};
  const StepChoice first = choose_step(s, limits(0));
  EXPECT_THAT(first.preempted, IsEmpty());
  EXPECT_THAT(first.feeds, IsEmpty());
  s[1].in_flight = false;
  EXPECT_THAT(choose_step(s, limits(0)).preempted, ElementsAre(1));
}

TEST(StepPolicy, APausedSequenceMakesRoomForANewOne) {
  std::vector<PolicySequence> s(4, decoding(30));
  s[0].ready = s[0].in_flight = false;
  s[0].paused = true;
  s.push_back(waiting(16));
  const StepChoice choice = choose_step(s, limits(10));
  EXPECT_THAT(choice.preempted, ElementsAre(0));
  EXPECT_THAT(feeds(choice), ElementsAre(Pair(1, 1), Pair(2, 1), Pair(3, 1), Pair(4, 16)));
  s[0].paused = false;  // it waits for its grammar: no reason to lose its place
  EXPECT_THAT(choose_step(s, limits(10)).preempted, IsEmpty());
}

PolicySequence random_sequence(Random& random) {
  PolicySequence s;
  s.running = random.below(2) != 0;
  s.paused = random.below(8) == 0;
  s.ready = !s.paused && random.below(4) != 0;
  s.in_flight = s.running && random.below(2) != 0;
  s.fed = s.running ? random.below(100) : random.below(3) * kBlock;
  s.pending = random.below(3) == 0 ? 1 + random.below(150) : 1;
  s.blocks = blocks_for(s.fed);
  s.own_blocks = s.running ? random.below(s.blocks + 1) : 0;
  s.row_per_token = random.below(8) == 0;
  return s;
}

struct Totals {
  int64_t tokens = 0, rows = 0, blocks = 0, places = 0;
};

Totals totals(const std::vector<PolicySequence>& s, const StepChoice& choice) {
  Totals t;
  for (const auto& sequence : s) t.places += sequence.running;
  for (const int64_t i : choice.preempted) {
    t.blocks -= s[static_cast<size_t>(i)].own_blocks;
    --t.places;
  }
  for (const StepFeed& feed : choice.feeds) {
    const PolicySequence& sequence = s[static_cast<size_t>(feed.sequence)];
    t.tokens += feed.tokens;
    t.rows += sequence.row_per_token ? feed.tokens : 1;
    t.blocks += feed.new_blocks;
    t.places += !sequence.running;
  }
  return t;
}

TEST(StepPolicy, KeepsItsPropertiesOnRandomStates) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  int preempted = 0, admitted = 0, short_of_blocks = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<PolicySequence> s;
    for (int64_t i = random.below(10); i >= 0; --i) s.push_back(random_sequence(random));
    const auto running = std::ranges::count_if(s, &PolicySequence::running);
    PolicyLimits limit{.tokens = 12 + random.below(100),
                       .sequences = running + random.below(4),
                       .block_tokens = kBlock,
                       .free_blocks = random.below(3) == 0 ? random.below(3) : random.below(40)};
    limit.rows = std::max<int64_t>(1, limit.sequences) + random.below(20);
    SCOPED_TRACE(round);
    const StepChoice choice = choose_step(s, limit);
    // P1
    const Totals t = totals(s, choice);
    ASSERT_LE(t.tokens, limit.tokens);
    ASSERT_LE(t.rows, limit.rows);
    ASSERT_LE(t.blocks, limit.free_blocks);
    ASSERT_LE(t.places, limit.sequences);
    std::set<int64_t> fed, gone(choice.preempted.begin(), choice.preempted.end());
    ASSERT_EQ(gone.size(), choice.preempted.size());
    for (const StepFeed& feed : choice.feeds) {
      const PolicySequence& sequence = s[static_cast<size_t>(feed.sequence)];
      ASSERT_TRUE(sequence.ready && fed.insert(feed.sequence).second && gone.count(feed.sequence) == 0);
      ASSERT_GE(feed.tokens, 1);
      ASSERT_LE(feed.tokens, sequence.pending);
      ASSERT_EQ(feed.new_blocks, std::max<int64_t>(0, blocks_for(sequence.fed + feed.tokens) - sequence.blocks));
    }
    // P3
    bool passed_over = false;
    for (size_t i = 0; i < s.size(); ++i) {
      if (s[i].running || !s[i].ready) continue;
      const bool in = fed.count(static_cast<int64_t>(i)) > 0;
      ASSERT_FALSE(in && passed_over) << "sequence " << i << " passed one that waited longer";
      passed_over |= !in;
      admitted += in;
    }
    // P4
    for (const int64_t i : choice.preempted) {
      const PolicySequence& victim = s[static_cast<size_t>(i)];
      ASSERT_TRUE(victim.running && !victim.in_flight && victim.own_blocks > 0);
      if (victim.paused) continue;
      const bool earlier = std::ranges::any_of(
          s, [&](const PolicySequence& other) { return &other < &victim && other.running && other.ready; });
      ASSERT_TRUE(earlier) << "nobody before sequence " << i << " needed its blocks";
    }
    // P2
    const auto first = std::ranges::find_if(s, [](const auto& x) { return x.running && x.ready; });
    const bool someone_held = std::ranges::any_of(s, [&](const PolicySequence& x) { return x.running && x.in_flight; });
    if (first != s.end() && first->pending == 1 && fed.count(first - s.begin()) == 0) {
      ASSERT_TRUE(choice.short_of_blocks && (someone_held || t.blocks + 1 > limit.free_blocks));
    }
    preempted += static_cast<int>(gone.size());
    short_of_blocks += choice.short_of_blocks;
  }
  // The states were interesting.
  EXPECT_GT(preempted, 500);
  EXPECT_GT(admitted, 5000);
  EXPECT_GT(short_of_blocks, 2000);
}

}  // namespace
}  // namespace hearth
