// SPDX-License-Identifier: Apache-2.0
// FixedBlockPool against a map from block to references, under random operations.
#include "hearth/kv/block_pool.h"

#include <gtest/gtest.h>

#include <map>

#include "hearth/base/random.h"

namespace hearth {
namespace {

// I1, I2
TEST(FixedBlockPool, AgreesWithAMapOfReferences) {
  constexpr uint64_t kSeed = 20261122;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  constexpr int64_t kBlockBytes = 192, kBlocks = 37;
  FixedBlockPool pool(kBlockBytes, kBlocks);
  std::map<int64_t, int> held;
  int exhausted = 0;
  for (int i = 0; i < 20000; ++i) {
    const auto any = [&] {
      auto it = held.begin();
      std::advance(it, random.below(static_cast<int64_t>(held.size())));
      return it;
    };
    const int64_t choice = random.below(10);
    if (choice < 5) {
      const auto offset = pool.allocate();
      ASSERT_EQ(offset.has_value(), held.size() < kBlocks);
      exhausted += !offset;
      if (!offset) continue;
      ASSERT_EQ(*offset % kBlockBytes, 0);
      ASSERT_LT(*offset / kBlockBytes, kBlocks);
      ASSERT_TRUE(held.emplace(*offset, 1).second) << "given out twice";
    } else if (choice < 6 && !held.empty()) {
      const auto it = any();
      pool.retain(it->first);
      ++it->second;
    } else if (!held.empty()) {
      const auto it = any();
      pool.release(it->first);
      if (--it->second == 0) held.erase(it);
    }
    for (const auto& [offset, count] : held) ASSERT_EQ(pool.shared(offset), count > 1);
    ASSERT_EQ(pool.available(), kBlocks - static_cast<int64_t>(held.size()));
  }
  EXPECT_GT(exhausted, 0);
  for (const auto& [offset, count] : held)
    for (int i = 0; i < count; ++i) pool.release(offset);
  EXPECT_EQ(pool.available(), pool.total());
}

TEST(FixedBlockPoolDeathTest, RefusesWhatOnlyABugCanAsk) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  FixedBlockPool pool(64, 2);
  EXPECT_DEATH(pool.release(0), "released while free");
  EXPECT_DEATH(pool.retain(64), "retained while free");
  EXPECT_DEATH(pool.release(1), "no block");
  EXPECT_DEATH(pool.release(128), "no block");
}

}  // namespace
}  // namespace hearth
