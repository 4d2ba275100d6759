// SPDX-License-Identifier: Apache-2.0
// What SlabPool prefers: where blocks go, who has what, what is evicted and who gives way. Slabs of 16 units of 64
// bytes; block sizes are in units.
#include <gtest/gtest.h>

#include <algorithm>

#include "hearth/kv/slab_pool.h"

namespace hearth {
namespace {

constexpr int64_t kUnit = 64, kColumns = 16, kSlabBytes = kColumns * kUnit;

class SlabPoolPolicy : public testing::Test {
 protected:
  void make(int64_t slabs, int64_t low = 0, int64_t high = 0) {
    auto made = SlabPool::create(
        {.slab_bytes = kSlabBytes, .slabs = slabs, .low_slabs = low, .high_slabs = high, .secret = {}});
    ASSERT_TRUE(made);
    pool = std::move(*made);
  }
  KvModelId add(int64_t units, KvLimits limits = {}) {
    const auto id =
        pool->add_model({.name = "model", .block_tokens = 1, .block_bytes = units * kUnit, .limits = limits});
    EXPECT_TRUE(id) << id.error().message;
    return *id;
  }
  std::vector<KvBlock> take(KvModelId model, int64_t count) {
    std::vector<KvBlock> blocks;
    EXPECT_TRUE(pool->allocate(model, count, blocks));
    return blocks;
  }
  int64_t slab_of(KvBlock block) const { return pool->offset_bytes(block) / kSlabBytes; }
  std::vector<PrefixKey> keys(KvModelId model, int32_t first, int64_t count, std::string_view salt = {}) const {
    std::vector<PrefixKey> keys;
    PrefixChain chain = pool->root(model, salt);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t token = first + i;
      keys.push_back(chain.next({&token, 1}));
    }
    return keys;
  }
  // Takes, publishes and releases blocks of a sequence that begins with this token.
  void leave_cached(KvModelId model, int32_t first, int64_t count) {
    const std::vector<KvBlock> blocks = take(model, count);
    const std::vector<PrefixKey> names = keys(model, first, count);
    for (size_t i = 0; i < blocks.size(); ++i) pool->publish(blocks[i], names[i]);
    pool->release(blocks);
  }
  int64_t cached(KvModelId model, int32_t first, int64_t count) const {
    return pool->hit(model, keys(model, first, count)).blocks;
  }

  std::unique_ptr<SlabPool> pool;
};

TEST_F(SlabPoolPolicy, ManyBlocksGetSlabsOfTheirOwnAndFewFillHoles) {
  make(10);
  const KvModelId model = add(1);
  const std::vector<KvBlock> first = take(model, 5), many = take(model, 2 * kColumns + 3), few = take(model, 8);
  for (const KvBlock b : first) EXPECT_EQ(slab_of(b), 0);
  for (size_t i = 0; i < 2 * kColumns; ++i) EXPECT_NE(slab_of(many[i]), 0);
  for (size_t i = 2 * kColumns; i < many.size(); ++i) EXPECT_EQ(slab_of(many[i]), 0);  // 3 of 11 free columns
  for (const KvBlock b : few) EXPECT_EQ(slab_of(b), 0);                                // the 8 that are left
  pool->release(many);
  EXPECT_EQ(pool->stats().empty_slabs, 9);
}

TEST_F(SlabPoolPolicy, TheBestFitIsTheFullestSlabThatHoldsAll) {
  make(10);
  const KvModelId model = add(1);
  std::vector<std::vector<KvBlock>> slabs;
  for (int i = 0; i < 3; ++i) slabs.push_back(take(model, kColumns));
  const auto punch = [&](size_t slab, int64_t holes) {
    pool->release(std::span(slabs[slab]).first(static_cast<size_t>(holes)));
  };
  punch(0, 9);
  punch(1, 4);
  punch(2, 6);
  for (const KvBlock b : take(model, 5)) EXPECT_EQ(slab_of(b), 2);
  for (const KvBlock b : take(model, 4)) EXPECT_EQ(slab_of(b), 1);
}

// I4
TEST_F(SlabPoolPolicy, CostDoesNotGrowWithThePool) {
  for (const int64_t slabs : {4, 4000}) {
    make(slabs);
    const KvModelId model = add(1), other = add(2);
    const std::vector<KvBlock> fill = take(other, (slabs - 2) * kColumns / 2);
    const int64_t before = pool->stats().touched_slabs;
    take(model, kColumns + 3);
    EXPECT_EQ(pool->stats().touched_slabs - before, 2) << slabs;
    take(model, 1);
    EXPECT_EQ(pool->stats().touched_slabs - before, 2) << slabs;  // the last one once more
    pool->release(fill);
  }
}

TEST_F(SlabPoolPolicy, WhatIsKeptIsLentToNobody) {
  make(10);
  const KvModelId owner = add(3, {.guarantee = 15, .kept = 10, .reserved = 10}), borrower = add(1, {.cap = 150});
  EXPECT_EQ(pool->most(borrower), 8 * kColumns);  // 5 columns in a slab: two slabs stay
  ASSERT_TRUE(pool->set_limits(owner, {.guarantee = 15, .kept = 10}));
  EXPECT_EQ(pool->most(borrower), 150);  // later
  EXPECT_EQ(pool->available(borrower), 8 * kColumns);
  take(borrower, 8 * kColumns);
  std::vector<KvBlock> none;
  EXPECT_FALSE(pool->allocate(borrower, 1, none));
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(pool->available(owner), 10);
  take(owner, 10);
  EXPECT_EQ(pool->available(owner), 0);
  // The rest of its guarantee was lent: the borrower has to give.
  EXPECT_EQ(pool->victim_for(owner), borrower);
  const KvPoolStats stats = pool->stats();
  EXPECT_EQ(stats.models[0].unused, 5);
  EXPECT_EQ(stats.models[1].borrowed, 8 * kColumns);
}

TEST_F(SlabPoolPolicy, ACapHolds) {
  make(10);
  const KvModelId model = add(1, {.cap = 20});
  EXPECT_EQ(pool->most(model), 20);
  const std::vector<KvBlock> blocks = take(model, 18);
  EXPECT_EQ(pool->available(model), 2);
  ASSERT_TRUE(pool->set_limits(model, {.cap = 10}));
  EXPECT_EQ(pool->available(model), 0);
  pool->release(std::span(blocks).first(10));
  EXPECT_EQ(pool->available(model), 2);
}

TEST_F(SlabPoolPolicy, RefusalsCarryTheArithmetic) {
  make(10);
  add(4, {.guarantee = 13});  // 4 columns in a slab: 4 slabs
  const auto message = [&](int64_t units, KvLimits limits) {
    const auto id = pool->add_model({.name = "m", .block_tokens = 1, .block_bytes = units * kUnit, .limits = limits});
    return id ? "" : id.error().message;
  };
  EXPECT_EQ(message(5, {.guarantee = 19}),
            "m: a guarantee of 19 KV blocks of 320 bytes needs 7 slabs of 1024 bytes, others' guarantees 4; the pool "
            "has 10");
  EXPECT_EQ(message(5, {.guarantee = 18}), "");
  EXPECT_EQ(message(17, {}), "m: a KV block of 1 tokens has 1088 bytes, a slab 1024");
  EXPECT_NE(message(1, {.guarantee = 2, .kept = 3}), "");
  EXPECT_NE(message(1, {.guarantee = 3, .kept = 2, .reserved = 3}), "");
  EXPECT_NE(message(1, {.guarantee = 2, .cap = 1}), "");
  EXPECT_NE(message(1, {.guarantee = std::numeric_limits<int64_t>::max()}), "");
  const auto shrunk = pool->resize(9);
  ASSERT_FALSE(shrunk);
  EXPECT_EQ(shrunk.error().message,
            "a KV pool of 9 slabs of 1024 bytes: live blocks need 0 of them, what models are guaranteed 10");
}

TEST_F(SlabPoolPolicy, AdmissionHasHysteresis) {
  make(10, 2, 4);
  const KvModelId model = add(1);
  std::vector<std::vector<KvBlock>> slabs;
  for (int i = 0; i < 8; ++i) slabs.push_back(take(model, kColumns));
  EXPECT_TRUE(pool->admits());
  slabs.push_back(take(model, 1));
  EXPECT_FALSE(pool->admits());
  pool->release(slabs[8]);
  pool->release(slabs[7]);
  EXPECT_FALSE(pool->admits());  // 3 slabs
  pool->release(slabs[6]);
  EXPECT_TRUE(pool->admits());
}

TEST_F(SlabPoolPolicy, TrimFillsUpToTheHighWatermark) {
  make(6, 2, 4);
  const KvModelId model = add(1);
  leave_cached(model, 100, kColumns);
  leave_cached(model, 200, 3 * kColumns);
  EXPECT_EQ(pool->trim(), 0);  // two are empty
  leave_cached(model, 300, kColumns);
  EXPECT_EQ(pool->trim(), 3);
  EXPECT_EQ(pool->stats().empty_slabs, 4);
  EXPECT_EQ(cached(model, 100, kColumns), 0);
  EXPECT_EQ(cached(model, 300, kColumns), kColumns);
}

TEST_F(SlabPoolPolicy, TenantsAndFormerModelsShareNothing) {
  make(4);
  const KvModelId model = add(1);
  leave_cached(model, 1, 5);
  EXPECT_EQ(pool->hit(model, keys(model, 1, 7)).blocks, 5);
  EXPECT_EQ(pool->hit(model, keys(model, 1, 7)).revived, 5);
  EXPECT_EQ(pool->hit(model, keys(model, 1, 5, "another")).blocks, 0);
  pool->remove_model(model);
  EXPECT_EQ(pool->stats().empty_slabs, 4);
  ASSERT_EQ(add(1), model);
  EXPECT_EQ(cached(model, 1, 5), 0);
}

TEST_F(SlabPoolPolicy, HitsAreCountedOfWhatWasAsked) {
  make(4);
  const KvModelId model = add(1);
  leave_cached(model, 1, 6);
  std::vector<KvBlock> found;
  EXPECT_EQ(pool->match(model, keys(model, 1, 9), 4, found), 4);
  const KvModelStats stats = pool->stats(model);
  EXPECT_EQ(stats.asked_blocks, 9);
  EXPECT_EQ(stats.hit_blocks, 4);
  EXPECT_EQ(stats.live, 4);
  EXPECT_EQ(stats.cached, 2);
}

TEST_F(SlabPoolPolicy, WhatIsForgottenIsNotFound) {
  make(4);
  const KvModelId model = add(1);
  leave_cached(model, 100, kColumns);
  const std::vector<KvBlock> blocks = take(model, 2);
  const std::vector<PrefixKey> names = keys(model, 1, 2);
  pool->publish(blocks[0], names[0]);
  pool->publish(blocks[1], names[1]);
  EXPECT_EQ(cached(model, 1, 2), 2);
  EXPECT_EQ(cached(model, 100, kColumns), kColumns);
  pool->forget_all();
  EXPECT_EQ(cached(model, 1, 2), 0);
  EXPECT_EQ(cached(model, 100, kColumns), 0);
  pool->release(blocks);
  EXPECT_EQ(pool->stats().models[0].cached, 0);
  EXPECT_EQ(pool->stats().empty_slabs, 4);
  leave_cached(model, 1, 2);
  EXPECT_EQ(cached(model, 1, 2), 2);
}

TEST_F(SlabPoolPolicy, EndsOfSequencesAreForgottenBeforeBeginnings) {
  make(1);
  const KvModelId model = add(1);
  leave_cached(model, 1, kColumns);
  take(model, 6);
  EXPECT_EQ(cached(model, 1, kColumns), kColumns - 6);
}

TEST_F(SlabPoolPolicy, TheSlabThatWasNotUsedForLongestGoesFirst) {
  make(3);
  const KvModelId model = add(1), other = add(2);
  for (const int32_t first : {100, 200, 300}) leave_cached(model, first, kColumns);
  std::vector<KvBlock> used;
  EXPECT_EQ(pool->match(model, keys(model, 100, kColumns), kColumns, used), kColumns);
  pool->release(used);
  take(other, 1);
  EXPECT_EQ(cached(model, 100, kColumns), kColumns);
  EXPECT_EQ(cached(model, 200, kColumns), 0);
  EXPECT_EQ(cached(model, 300, kColumns), kColumns);
}

// One slab is used up after the other: those that follow stay whole, for this model's cache or for others.
TEST_F(SlabPoolPolicy, BlocksTakenOneByOneUseUpOneIdleSlab) {
  make(5);
  const KvModelId model = add(1);
  for (const int32_t first : {100, 200, 300, 400}) leave_cached(model, first, kColumns);
  const std::vector<KvBlock> live = take(model, 1);
  leave_cached(model, 500, kColumns - 1);  // beside it, and used last
  for (int i = 0; i < kColumns; ++i) EXPECT_EQ(slab_of(take(model, 1)[0]), 0);
  EXPECT_EQ(pool->stats().idle_slabs, 3);
  take(model, 1);
  EXPECT_EQ(pool->stats().idle_slabs, 2);
}

TEST_F(SlabPoolPolicy, ACacheWithinItsGuaranteeGoesLast) {
  make(3);
  const KvModelId guarded = add(1, {.guarantee = kColumns}), plain = add(2), third = add(4);
  leave_cached(guarded, 100, kColumns);
  leave_cached(plain, 200, kColumns / 2);
  leave_cached(plain, 300, kColumns / 2);
  take(third, 8);
  EXPECT_EQ(cached(guarded, 100, kColumns), kColumns);
  EXPECT_EQ(cached(plain, 200, kColumns / 2) + cached(plain, 300, kColumns / 2), 0);
}

TEST_F(SlabPoolPolicy, ACacheThatBringsNothingGoesBeforeAnOlderOneThatDoes) {
  make(4);
  const KvModelId useful = add(1), useless = add(2), third = add(4);
  leave_cached(useful, 100, kColumns);
  for (int i = 0; i < 3; ++i) {
    std::vector<KvBlock> used;
    EXPECT_EQ(pool->match(useful, keys(useful, 100, kColumns), kColumns, used), kColumns);
    pool->release(used);
    pool->end_window();
  }
  leave_cached(useless, 200, kColumns / 2);
  leave_cached(useless, 300, kColumns);  // so many columns that the first is 3 times as old: within the 8 times
  take(third, 1);
  EXPECT_EQ(cached(useful, 100, kColumns), kColumns);
  EXPECT_EQ(cached(useless, 200, kColumns / 2), 0);
}

TEST_F(SlabPoolPolicy, VictimsGainTheFewestTokensPerByte) {
  make(30);
  const KvModelId fast = add(1), slow = add(1), guarded = add(1, {.guarantee = 100});
  for (const KvModelId m : {fast, slow, guarded}) take(m, 32);
  for (int window = 0; window < 5; ++window) {
    pool->served(fast, 1000);
    pool->served(slow, 100);
    pool->served(guarded, 1);
    pool->end_window();
  }
  EXPECT_EQ(pool->victim_for(fast), slow);     // guarded borrows nothing
  EXPECT_EQ(pool->victim_for(slow), slow);     // nobody gains less: its own
  EXPECT_EQ(pool->victim_for(guarded), slow);  // it has less than it was promised
  std::vector<KvModelId> wanting = {slow, fast, guarded};
  pool->rank_borrowers(wanting);
  EXPECT_EQ(wanting, (std::vector<KvModelId>{guarded, fast, slow}));
}

TEST_F(SlabPoolPolicy, NearlyEmptySlabsAreEmptied) {
  make(4, 1, 2);
  const KvModelId model = add(1);
  add(2);
  std::vector<std::vector<KvBlock>> slabs;
  for (int i = 0; i < 4; ++i) slabs.push_back(take(model, kColumns));
  pool->release(std::span(slabs[1]).first(14));  // 2 are left
  pool->release(std::span(slabs[2]).first(1));
  pool->release(std::span(slabs[3]).first(5));
  EXPECT_TRUE(pool->compact(2 * kUnit - 1).empty());
  const KvBlock moved = slabs[1].back();
  const int64_t from = pool->offset_bytes(moved);
  const std::vector<KvMove> moves = pool->compact(100 * kUnit);
  ASSERT_EQ(moves.size(), 2u);
  EXPECT_EQ(pool->stats().empty_slabs, 1);
  EXPECT_EQ(slab_of(slabs[1][14]), 2);  // the fullest first
  EXPECT_EQ(slab_of(slabs[1][15]), 3);
  EXPECT_TRUE(std::ranges::any_of(moves, [&](const KvMove& m) {
    return m.from_bytes == from && m.to_bytes == pool->offset_bytes(moved) && m.size_bytes == kUnit;
  }));
}

// Moves go on until what is kept for a model can be had, whatever the watermarks.
TEST_F(SlabPoolPolicy, HolesBecomeSlabsForWhatIsKept) {
  make(4);
  const KvModelId model = add(1), needy = add(16);
  std::vector<std::vector<KvBlock>> slabs;
  for (int i = 0; i < 4; ++i) slabs.push_back(take(model, kColumns));
  for (const auto& slab : slabs) pool->release(std::span(slab).first(kColumns / 2));
  EXPECT_TRUE(pool->compact(1 << 20).empty());
  EXPECT_EQ(pool->available(needy), 0);
  ASSERT_TRUE(pool->set_limits(needy, {.guarantee = 2, .kept = 2}));
  EXPECT_EQ(pool->available(needy), 0);
  EXPECT_EQ(pool->available(model), 0);
  EXPECT_EQ(pool->compact(1 << 20).size(), 16u);
  EXPECT_EQ(pool->available(needy), 2);
}

TEST(SlabPoolDeathTest, RefusesWhatOnlyABugCanAsk) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto pool = std::move(*SlabPool::create({.slab_bytes = kSlabBytes, .slabs = 1, .secret = {}}));
  const KvModelId model = *pool->add_model({.name = "m", .block_tokens = 1, .block_bytes = kUnit, .limits = {}});
  std::vector<KvBlock> blocks;
  ASSERT_TRUE(pool->allocate(model, 1, blocks));
  EXPECT_DEATH(pool->remove_model(model), "live blocks");
  EXPECT_DEATH(pool->available(model + 1), "no model");
  pool->release(blocks);
  EXPECT_DEATH(pool->release(blocks), "not live");
  EXPECT_DEATH(pool->retain(blocks), "not live");
  EXPECT_DEATH(pool->offset_bytes(blocks[0]), "not live");
}

TEST(SlabPool, OptionsAreChecked) {
  EXPECT_FALSE(SlabPool::create({.slab_bytes = 100, .slabs = 1, .secret = {}}));
  EXPECT_FALSE(SlabPool::create({.slabs = -1, .secret = {}}));
  EXPECT_FALSE(SlabPool::create({.slabs = 1, .low_slabs = 2, .high_slabs = 1, .secret = {}}));
}

}  // namespace
}  // namespace hearth
