// SPDX-License-Identifier: Apache-2.0
#include "hearth/schedule/step_queue.h"

#include <gtest/gtest.h>

namespace hearth {
namespace {

TEST(StepQueue, IsFreeWhenTheLastStepEnds) {
  StepQueue queue;
  EXPECT_EQ(queue.free_us(7), 7);
  queue.launched(100, 50);
  EXPECT_EQ(queue.free_us(100), 150);
  queue.launched(110, 30);
  EXPECT_EQ(queue.free_us(120), 180);
  EXPECT_EQ(queue.free_us(160), 190) << "the first is late, the second begins when it ends";
  queue.ended(170);
  EXPECT_EQ(queue.free_us(170), 200);
  queue.ended(200);
  EXPECT_EQ(queue.free_us(300), 300);
}

// Two steps under way all the time, each predicted a tenth too long: after 1,000 of them it is still two tenths.
TEST(StepQueue, ErrorsDoNotAddUp) {
  StepQueue queue;
  int64_t now_us = 0;
  queue.launched(now_us, 110);
  for (int step = 0; step < 1000; ++step) {
    queue.launched(now_us, 110);
    EXPECT_EQ(queue.free_us(now_us), now_us + 220);
    now_us += 100;
    queue.ended(now_us);
  }
}

}  // namespace
}  // namespace hearth
