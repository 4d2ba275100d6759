// SPDX-License-Identifier: Apache-2.0
#include "hearth/schedule/attainment.h"

#include <gtest/gtest.h>

namespace hearth {
namespace {

using enum EndedAnswer::End;

constexpr Slo kSlo{.ttft_us = 1000, .tpot_us = 100};

SloCounts counted(const EndedAnswer& answer, const Slo& slo = kSlo) {
  SloCounts counts;
  counts.count(answer, slo);
  return counts;
}

EndedAnswer answer(int64_t first_us, int64_t last_us, int64_t tokens, EndedAnswer::End end = kComplete) {
  return {.end = end, .arrival_us = 500, .first_us = first_us, .last_us = last_us, .tokens = tokens, .end_us = last_us};
}

TEST(Attainment, BothTargetsAreKeptToTheMicrosecond) {
  EXPECT_EQ(counted(answer(1500, 2400, 10)).attained, 1);
  const SloCounts late = counted(answer(1501, 2401, 10));
  EXPECT_EQ(late.attained, 0);
  EXPECT_EQ(late.first_late, 1);
  EXPECT_EQ(late.pace_missed, 0);
  const SloCounts slow = counted(answer(1500, 2401, 10));
  EXPECT_EQ(slow.attained, 0);
  EXPECT_EQ(slow.first_late, 0);
  EXPECT_EQ(slow.pace_missed, 1);
}

TEST(Attainment, OneMayBeLateAndSlow) {
  const SloCounts counts = counted(answer(1600, 9000, 2));
  EXPECT_EQ(counts.answers, 1);
  EXPECT_EQ(counts.first_late, 1);
  EXPECT_EQ(counts.pace_missed, 1);
}

TEST(Attainment, ATargetThatIsNotThereIsKept) {
  EXPECT_EQ(counted(answer(9000, 9000, 1), {}).answers, 0);
  EXPECT_EQ(counted(answer(9000, 9100, 2), {.tpot_us = 100}).attained, 1);
  EXPECT_EQ(counted(answer(1500, 90000, 2), {.ttft_us = 1000}).attained, 1);
}

TEST(Attainment, WhoLeavesInTimeDoesNotCount) {
  EXPECT_EQ(counted({.end = kLeft, .arrival_us = 500, .end_us = 1500}).answers, 0);
  EXPECT_EQ(counted(answer(1400, 9000, 3, kLeft)).answers, 0);
  const SloCounts late = counted({.end = kLeft, .arrival_us = 500, .end_us = 1501});
  EXPECT_EQ(late.answers, 1);
  EXPECT_EQ(late.first_late, 1);
}

TEST(Attainment, WhatFailedIsMissed) {
  const SloCounts before = counted({.end = kFailed, .arrival_us = 500, .end_us = 600});
  EXPECT_EQ(before.answers, 1);
  EXPECT_EQ(before.first_late, 1);
  const SloCounts after = counted(answer(1400, 1500, 2, kFailed));
  EXPECT_EQ(after.answers, 1);
  EXPECT_EQ(after.first_late, 0);
  EXPECT_EQ(after.attained, 0);
}

TEST(Attainment, WhatHasNoTokensDoesNotCount) { EXPECT_EQ(counted({.arrival_us = 500, .end_us = 90000}).answers, 0); }

TEST(DueTime, FollowsTheAnswer) {
  AnswerProgress answer{.arrival_us = 500};
  EXPECT_EQ(due_us(answer, kSlo, 9000), 1500);
  answer.planned = 1;
  EXPECT_EQ(due_us(answer, kSlo, 9000), 9100) << "the first comes with the step under way";
  answer.out = 1;
  answer.first_us = answer.last_us = 700;
  EXPECT_EQ(due_us(answer, kSlo, 9000), 800);
  answer.planned = 2;
  EXPECT_EQ(due_us(answer, kSlo, 9000), 900);
  EXPECT_EQ(due_us(answer, {.ttft_us = 1000}, 9000), kNoDue);
  EXPECT_EQ(due_us(AnswerProgress{}, {.tpot_us = 1000}, 9000), kNoDue);
}

// It goes on at its pace behind the token before, which may not have come yet.
TEST(DueTime, OfALateAnswerIsItsPace) {
  AnswerProgress answer{.planned = 5, .out = 5, .first_us = 8000, .last_us = 8800, .late = true};
  EXPECT_EQ(due_us(answer, kSlo, 9000), 8900);
  answer.planned = 6;
  EXPECT_EQ(due_us(answer, kSlo, 9000), 9100);
}

}  // namespace
}  // namespace hearth
