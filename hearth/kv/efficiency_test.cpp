// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/efficiency.h"

#include <gtest/gtest.h>

#include "hearth/base/random.h"

namespace hearth {
namespace {

TEST(MemoryEfficiency, IsWhatWasAssumedUntilSomethingIsKnown) {
  MemoryEfficiency efficiency(0.25);
  EXPECT_EQ(efficiency.tokens_per_byte(), 0.25);
  efficiency.end_window();  // an idle one tells nothing
  EXPECT_EQ(efficiency.tokens_per_byte(), 0.25);
}

TEST(MemoryEfficiency, IsTheRatioWhileMemoryDoesNotVary) {
  MemoryEfficiency efficiency(1);
  for (int i = 0; i < 4; ++i) {
    efficiency.served(300, 1000);
    efficiency.served(100, 1000);
    efficiency.end_window();
  }
  EXPECT_DOUBLE_EQ(efficiency.tokens_per_byte(), 0.4);
}

TEST(MemoryEfficiency, IsTheSlopeOfALine) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  MemoryEfficiency efficiency(1);
  for (int i = 0; i < 200; ++i) {
    const int64_t bytes = 1000 + 10 * random.below(400);
    efficiency.served(700 + bytes / 10, bytes);
    efficiency.end_window();
  }
  EXPECT_NEAR(efficiency.tokens_per_byte(), 0.1, 1e-9);
}

TEST(MemoryEfficiency, IsNothingWhereMemoryIsNotWhatIsShort) {
  MemoryEfficiency efficiency(1);
  for (int i = 0; i < 100; ++i) {
    efficiency.served(500, 1000 + 500 * (i % 3));
    efficiency.end_window();
  }
  EXPECT_NEAR(efficiency.tokens_per_byte(), 0, 1e-12);
  for (int i = 0; i < 100; ++i) {
    efficiency.served(500 - 100 * (i % 3), 1000 + 500 * (i % 3));
    efficiency.end_window();
  }
  EXPECT_EQ(efficiency.tokens_per_byte(), 0);
}

}  // namespace
}  // namespace hearth
