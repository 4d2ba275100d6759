// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/fineserve_pool.h"

#include <gtest/gtest.h>

#include <map>

namespace hearth {
namespace {

FineServeModel model(int64_t layers, int64_t layer_bytes, double rate = 1) {
  return {.spec = {.name = "m", .block_tokens = 16, .block_bytes = 2 * layers * layer_bytes, .limits = {}},
          .layers = layers,
          .rate = rate,
          .least_tokens = 16};
}

// The authors' example: blocks of 64 KiB (fp16), 32 KiB (fp8) and 34 KiB (QoQ with scales) have the least common
// multiple 1088 KiB.
TEST(FineServePool, SlabsAreTwiceTheLeastCommonMultipleInEveryLayer) {
  const auto pool = FineServePool::create(int64_t{10} << 30, {model(32, 65536), model(32, 32768), model(32, 34816)}, 1);
  ASSERT_TRUE(pool) << pool.error().message;
  EXPECT_EQ((*pool)->slab_bytes(), 2 * 1088 * 1024);
  const KvPoolStats stats = (*pool)->stats();
  EXPECT_EQ(stats.slabs, (int64_t{10} << 30) / (64 * 2 * 1088 * 1024));
  EXPECT_EQ(stats.formats[0].columns_per_slab, 34);
  EXPECT_EQ(stats.formats[1].columns_per_slab, 68);
  EXPECT_EQ(stats.formats[2].columns_per_slab, 64);
}

TEST(FineServePool, MemoryIsSplitBetweenLayerCountsByRateTimesLayers) {
  auto pool = std::move(*FineServePool::create(120 << 20, {model(10, 1024, 3), model(30, 1024, 1)}, 1));
  // Slabs of 2 KiB in 20 and 60 stripes, two blocks each; one slab each, the rest 1 : 1.
  EXPECT_NEAR(static_cast<double>(pool->most(0)), 2 * 60.0 * 1024 / 40, 4);
  EXPECT_NEAR(static_cast<double>(pool->most(1)), 2 * 60.0 * 1024 / 120, 4);
  std::vector<KvBlock> blocks;
  EXPECT_TRUE(pool->allocate(0, pool->most(0), blocks));
  EXPECT_FALSE(pool->allocate(0, 1, blocks));
  EXPECT_EQ(pool->available(1), pool->most(1));
  EXPECT_FALSE(FineServePool::create(100 << 10, {model(10, 1024), model(30, 1024)}, 1));
}

TEST(FineServePool, AgreesWithAMapUnderRandomOperations) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const std::vector<FineServeModel> models = {model(2, 64), model(2, 128), model(2, 192), model(3, 64)};
  auto pool = std::move(*FineServePool::create(200 << 10, models, kSeed));
  std::map<KvBlock, int> references;
  std::vector<std::vector<KvBlock>> sequences;
  int refused = 0;
  for (int step = 0; step < 20000; ++step) {
    if (random.below(2) == 0) {
      const auto m = static_cast<KvModelId>(random.below(4));
      const int64_t available = pool->available(m), count = 1 + random.below(40);
      std::vector<KvBlock> blocks;
      ASSERT_EQ(pool->allocate(m, count, blocks), count <= available);
      refused += count > available;
      if (blocks.empty()) continue;
      ASSERT_EQ(std::ssize(blocks), count);
      for (const KvBlock b : blocks) ASSERT_EQ(references[b]++, 0);
      if (random.below(4) == 0) {
        pool->retain(blocks);
        for (const KvBlock b : blocks) ++references[b];
        sequences.push_back(blocks);
      }
      sequences.push_back(std::move(blocks));
    } else if (!sequences.empty()) {
      std::swap(sequences[static_cast<size_t>(random.below(std::ssize(sequences)))], sequences.back());
      pool->release(sequences.back());
      for (const KvBlock b : sequences.back()) --references[b];
      sequences.pop_back();
    }
    if (step % 16 > 0) continue;
    std::map<int64_t, int64_t> places;  // offset -> end
    for (const auto& [b, count] : references) {
      if (count == 0) continue;
      ASSERT_EQ(pool->shared(b), count > 1);
      places[pool->offset_bytes(b)] = 0;
    }
    int64_t live = 0;
    for (const KvFormatStats& f : pool->stats().formats) live += f.live;
    ASSERT_EQ(live, std::ssize(places)) << "two blocks lie in one place";
  }
  EXPECT_GT(refused, 100);
  for (const auto& s : sequences) pool->release(s);
  EXPECT_EQ(pool->stats().empty_slabs, pool->stats().slabs);
}

}  // namespace
}  // namespace hearth
