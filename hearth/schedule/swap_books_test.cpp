// SPDX-License-Identifier: Apache-2.0
#include "hearth/schedule/swap_books.h"

#include <gtest/gtest.h>

namespace hearth {
namespace {

// 100 tokens again take 1000 + 100 * 10 + 5 + 5000 * 0.1 = 2505 us; their KV 100 us a byte there and back.
constexpr StepCost kCost{
    .step_us = 1000, .prefill_token_us = 10, .sequence_us = 5, .context_token_us = 7, .prefill_pair_us = 0.1};

TEST(SwapBooks, ComparesCopiesWithComputingAgain) {
  SwapBooks books(1000, 100);
  EXPECT_FALSE(books.take_if_cheaper(kCost, 100, 26)) << "2600 us";
  EXPECT_EQ(books.take_if_cheaper(kCost, 100, 25), 0) << "2500 us";
  EXPECT_EQ(books.used_bytes(), 25);
  EXPECT_FALSE(books.take_if_cheaper({}, 100, 25)) << "nothing is known of steps";
  EXPECT_FALSE(SwapBooks().take_if_cheaper(kCost, 100, 0));
}

TEST(SwapBooks, GivesNoMoreThanThereIs) {
  SwapBooks books(100, 0);
  EXPECT_EQ(books.take_if_cheaper(kCost, 10, 60), 0);
  EXPECT_FALSE(books.take_if_cheaper(kCost, 10, 41));
  EXPECT_EQ(books.take_if_cheaper(kCost, 10, 40), 60);
  books.give_back(0);
  EXPECT_EQ(books.take_if_cheaper(kCost, 10, 41), 0);
  EXPECT_EQ(books.used_bytes(), 81);
}

}  // namespace
}  // namespace hearth
