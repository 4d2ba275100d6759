// SPDX-License-Identifier: Apache-2.0
// SlabPool against a naive model that knows which blocks are live and what lies in memory, and searches for the rest.
#include "hearth/kv/slab_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr int64_t kSlabBytes = 64 * 60;

std::unique_ptr<SlabPool> make_pool(const SlabPoolOptions& options) {
  auto pool = SlabPool::create(options);
  HEARTH_CHECK(pool, "{}", pool.error().message);
  return std::move(*pool);
}

struct NaiveSequence {
  KvModelId model = 0;
  uint64_t salt = 0;
  std::vector<int32_t> tokens;  // one for each block
  std::vector<KvBlock> blocks;
  int64_t published = 0;  // or not worth it: blocks that were matched
};

class Naive {
 public:
  Naive(SlabPool& pool, int64_t slabs) : pool_(pool), slabs_(slabs) {}

  struct Model {
    KvModelSpec spec;
    int64_t live = 0;
  };
  std::map<KvModelId, Model> models;
  std::map<KvBlock, std::pair<KvModelId, int>> live;  // references
  std::map<int64_t, uint64_t> memory;                 // what was written last, by offset

  void took(KvModelId model, std::span<const KvBlock> blocks) {
    for (const KvBlock b : blocks) {
      if (live.try_emplace(b, model, 0).second) ++models[model].live;
      ASSERT_EQ(live[b].first, model);
      ++live[b].second;
    }
  }
  void gave(std::span<const KvBlock> blocks) {
    for (const KvBlock b : blocks) {
      auto& [model, references] = live.at(b);
      if (--references > 0) continue;
      --models[model].live;
      live.erase(b);
    }
  }
  void carry_out(std::span<const KvMove> moves) {
    for (const KvMove& move : moves) memory[move.to_bytes] = memory.at(move.from_bytes);
  }
  void resize(int64_t slabs) { slabs_ = slabs; }

  // I1, and that no two blocks overlap: every live block is a column of a slab of its format.
  void check_places() const {
    std::map<int64_t, int64_t> format_of;
    std::set<int64_t> offsets;
    for (const auto& [block, owner] : live) {
      const int64_t offset = pool_.offset_bytes(block), bytes = models.at(owner.first).spec.block_bytes;
      const int64_t slab = offset / kSlabBytes;
      ASSERT_GE(offset, 0);
      ASSERT_LT(slab, slabs_);
      ASSERT_EQ(offset % kSlabBytes % bytes, 0);
      ASSERT_LE(offset % kSlabBytes + bytes, kSlabBytes);
      ASSERT_EQ(format_of.try_emplace(slab, bytes).first->second, bytes);
      ASSERT_TRUE(offsets.insert(offset).second);
      ASSERT_EQ(pool_.shared(block), owner.second > 1);
    }
  }

  // Whether what is kept for all can still be given, were `more` blocks of `model` live, packed as well as its slabs
  // allow: (1) of slab_pool.cpp, by counting.
  bool fits(KvModelId model, int64_t more) const {
    std::map<int64_t, std::set<int64_t>> used;  // slabs by block size
    std::map<int64_t, int64_t> wanted;          // columns by block size: live, owed, and `more`
    for (const auto& [block, owner] : live)
      used[models.at(owner.first).spec.block_bytes].insert(pool_.offset_bytes(block) / kSlabBytes);
    for (const auto& [id, m] : models)
      wanted[m.spec.block_bytes] += std::max(m.live + (id == model ? more : 0), m.spec.limits.kept);
    int64_t slabs = 0;
    for (const auto& [bytes, columns] : wanted) {
      const int64_t per_slab = kSlabBytes / bytes;
      slabs += std::max<int64_t>(std::ssize(used[bytes]), (columns + per_slab - 1) / per_slab);
    }
    return slabs <= slabs_;
  }
  int64_t available(KvModelId model) const {
    const Model& m = models.at(model);
    int64_t blocks = 0;
    if (fits(model, 0)) {
      while (fits(model, blocks + 1)) ++blocks;
    } else {  // only what is kept for it
      std::map<int64_t, int64_t> slab_formats;
      for (const auto& [block, owner] : live)
        slab_formats[pool_.offset_bytes(block) / kSlabBytes] = models.at(owner.first).spec.block_bytes;
      const int64_t per_slab = kSlabBytes / m.spec.block_bytes;
      for (int64_t s = 0; s < slabs_; ++s)
        if (!slab_formats.contains(s) || slab_formats[s] == m.spec.block_bytes) blocks += per_slab;
      for (const auto& [block, owner] : live) blocks -= models.at(owner.first).spec.block_bytes == m.spec.block_bytes;
      blocks = std::min(blocks, std::max<int64_t>(0, m.spec.limits.kept - m.live));
    }
    return std::max<int64_t>(0, std::min(blocks, m.spec.limits.cap - m.live));
  }

 private:
  SlabPool& pool_;
  int64_t slabs_;
};

void check_sums(const SlabPool& pool, const Naive& naive) {
  const KvPoolStats stats = pool.stats();
  int64_t live = 0, in_slabs = 0, slabs = 0;
  for (const auto& [id, model] : naive.models) live += model.live * model.spec.block_bytes;
  ASSERT_EQ(stats.live_bytes, live);
  for (const KvFormatStats& f : stats.formats) {
    ASSERT_EQ(f.live + f.cached + f.free, f.slabs * f.columns_per_slab);
    slabs += f.slabs;
    in_slabs += f.slabs * pool.slab_bytes();
  }
  ASSERT_EQ(stats.live_bytes + stats.cached_bytes + stats.free_bytes + stats.tail_bytes, in_slabs);
  ASSERT_EQ(slabs + stats.empty_slabs, stats.slabs);
  int64_t cached = 0;
  for (const KvModelStats& m : stats.models) {
    ASSERT_EQ(m.live, naive.models.at(m.model).live);
    cached += m.cached * naive.models.at(m.model).spec.block_bytes;
  }
  ASSERT_EQ(stats.cached_bytes, cached);
}

// I1 to I4 under everything that can happen to a pool.
TEST(SlabPool, AgreesWithANaiveModelUnderRandomOperations) {
  int64_t hits = 0, moves = 0, refused = 0, debts = 0, shrunk = 0;
  for (const uint64_t seed : {20261123, 2, 3, 4}) {
    SCOPED_TRACE(seed);
    Random random(seed);
    int64_t slabs = 24;
    const auto pool = make_pool({.slab_bytes = kSlabBytes, .slabs = slabs, .low_slabs = 2, .high_slabs = 5});
    Naive naive(*pool, slabs);
    std::vector<NaiveSequence> sequences;
    const std::vector<int64_t> sizes = {64, 64 * 4, 64 * 7, 64 * 7, 64 * 20, 64 * 31};

    const auto content = [](const NaiveSequence& s, int64_t block) {  // of a block: model, salt, and tokens up to it
      uint64_t mix = static_cast<uint64_t>(s.model) * 1000003 + s.salt;
      for (int64_t i = 0; i <= block; ++i)
        mix = (mix + static_cast<uint64_t>(s.tokens[static_cast<size_t>(i)])) * 0x9E3779B97F4A7C15 + 1;
      return mix;
    };
    const auto keys_of = [&](const NaiveSequence& s) {
      std::vector<PrefixKey> keys;
      PrefixChain chain = pool->root(s.model, s.salt == 0 ? "" : "another");
      for (const int32_t token : s.tokens) keys.push_back(chain.next({&token, 1}));
      return keys;
    };
    const auto write_from = [&](NaiveSequence& s, int64_t from) {
      for (int64_t i = from; i < std::ssize(s.blocks); ++i)
        naive.memory[pool->offset_bytes(s.blocks[static_cast<size_t>(i)])] = content(s, i);
    };
    const auto publish = [&](NaiveSequence& s) {
      const std::vector<PrefixKey> keys = keys_of(s);
      for (; s.published < std::ssize(s.blocks); ++s.published)
        pool->publish(s.blocks[static_cast<size_t>(s.published)], keys[static_cast<size_t>(s.published)]);
    };
    // Grows to all of its tokens; false: no room, nothing changed.
    const auto grow = [&](NaiveSequence& s) {
      const int64_t before = std::ssize(s.blocks), count = std::ssize(s.tokens) - before;
      const int64_t available = naive.available(s.model);
      EXPECT_EQ(pool->available(s.model), available);
      const int64_t touched = pool->stats().touched_slabs;
      const bool fits = pool->allocate(s.model, count, s.blocks);
      EXPECT_EQ(fits, count <= available);
      EXPECT_LE(pool->stats().touched_slabs - touched, count + 1);  // I4
      refused += !fits;
      if (!fits) return false;
      naive.took(s.model, std::span(s.blocks).subspan(static_cast<size_t>(before)));
      write_from(s, before);
      return true;
    };
    const auto add_model = [&] {
      KvModelSpec spec{.name = "m",
                       .block_tokens = 1,
                       .block_bytes = sizes[static_cast<size_t>(random.below(std::ssize(sizes)))],
                       .limits = {}};
      if (random.below(2) == 0) {
        spec.limits.kept = random.below(6);
        spec.limits.guarantee = spec.limits.kept + random.below(6);
      }
      if (random.below(3) == 0) spec.limits.cap = spec.limits.guarantee + random.below(60);
      const auto id = pool->add_model(spec);
      if (id) naive.models[*id] = {.spec = spec};
    };
    for (int i = 0; i < 3; ++i) add_model();

    for (int step = 0; step < 2000 && !testing::Test::HasFatalFailure(); ++step) {
      const int64_t choice = random.below(100);
      const auto any = [&]() -> NaiveSequence& {
        return sequences[static_cast<size_t>(random.below(std::ssize(sequences)))];
      };
      if (choice < 30 && !naive.models.empty()) {  // a new sequence, perhaps with a prefix that is there
        NaiveSequence s;
        s.model = std::next(naive.models.begin(), random.below(std::ssize(naive.models)))->first;
        s.salt = static_cast<uint64_t>(random.below(2));
        const int64_t length = 1 + random.below(random.below(8) == 0 ? 80 : 12);
        for (int64_t i = 0; i < length; ++i) s.tokens.push_back(static_cast<int32_t>(random.below(2)));
        if (random.below(3) > 0) {
          const std::vector<PrefixKey> keys = keys_of(s);
          const KvHit hit = pool->hit(s.model, keys);
          const int64_t available = naive.available(s.model);
          const int64_t matched = pool->match(s.model, keys, std::ssize(keys), s.blocks);
          ASSERT_LE(matched, hit.blocks);
          ASSERT_EQ(matched, std::ssize(s.blocks));
          naive.took(s.model, s.blocks);
          ASSERT_GE(naive.available(s.model), available - hit.revived);
          for (int64_t i = 0; i < matched; ++i)
            ASSERT_EQ(naive.memory.at(pool->offset_bytes(s.blocks[static_cast<size_t>(i)])), content(s, i));
          hits += matched;
          s.published = matched;
        }
        if (grow(s)) {
          sequences.push_back(std::move(s));
        } else {
          pool->release(s.blocks);
          naive.gave(s.blocks);
        }
      } else if (choice < 50 && !sequences.empty()) {  // grows
        NaiveSequence& s = any();
        s.tokens.push_back(static_cast<int32_t>(random.below(2)));
        if (!grow(s)) s.tokens.pop_back();
      } else if (choice < 60 && !sequences.empty()) {
        publish(any());
      } else if (choice < 63 && !sequences.empty()) {  // a fork
        NaiveSequence s = any();
        pool->retain(s.blocks);
        naive.took(s.model, s.blocks);
        s.published = std::ssize(s.blocks);
        sequences.push_back(std::move(s));
      } else if (choice < 82 && !sequences.empty()) {  // an end
        std::swap(any(), sequences.back());
        pool->release(sequences.back().blocks);
        naive.gave(sequences.back().blocks);
        sequences.pop_back();
      } else if (choice < 88) {
        const int64_t without_live = [&] {
          const KvPoolStats stats = pool->stats();
          return stats.empty_slabs + stats.idle_slabs;
        }();
        const auto list = pool->compact(64 * random.below(200));
        naive.carry_out(list);
        moves += std::ssize(list);
        const KvPoolStats stats = pool->stats();
        ASSERT_TRUE(list.empty() || stats.empty_slabs + stats.idle_slabs > without_live);
      } else if (choice < 90) {
        pool->trim();
      } else if (choice < 92) {
        if (naive.models.size() < 5) add_model();
      } else if (choice < 94 && !naive.models.empty()) {
        const KvModelId id = std::next(naive.models.begin(), random.below(std::ssize(naive.models)))->first;
        std::erase_if(sequences, [&](const NaiveSequence& s) {
          if (s.model != id) return false;
          pool->release(s.blocks);
          naive.gave(s.blocks);
          return true;
        });
        pool->remove_model(id);
        naive.models.erase(id);
      } else if (choice < 97 && !naive.models.empty()) {
        auto& [id, model] = *std::next(naive.models.begin(), random.below(std::ssize(naive.models)));
        KvLimits limits{.kept = random.below(20)};
        limits.guarantee = limits.kept + random.below(10);
        limits.cap = limits.guarantee + random.below(80);
        if (pool->set_limits(id, limits)) model.spec.limits = limits;
      } else {
        const int64_t wanted = 12 + random.below(20);
        const auto list = pool->resize(wanted);
        if (list) {
          shrunk += wanted < slabs && !list->empty();
          slabs = wanted;
          naive.carry_out(*list);
          naive.resize(slabs);
        }
      }
      check_sums(*pool, naive);
      debts += !naive.models.empty() && !naive.fits(naive.models.begin()->first, 0);
      if (step % 8 > 0) continue;
      naive.check_places();
      for (const auto& [id, model] : naive.models) {
        ASSERT_EQ(pool->available(id), naive.available(id));
      }
      for (const NaiveSequence& s : sequences)
        for (int64_t i = 0; i < std::ssize(s.blocks); ++i)
          ASSERT_EQ(naive.memory.at(pool->offset_bytes(s.blocks[static_cast<size_t>(i)])), content(s, i));
      if (testing::Test::HasFailure()) break;
    }
    ASSERT_FALSE(testing::Test::HasFailure());
    for (const NaiveSequence& s : sequences) pool->release(s.blocks);
    const KvPoolStats stats = pool->stats();
    EXPECT_EQ(stats.live_bytes, 0);
    EXPECT_EQ(stats.empty_slabs + stats.idle_slabs, stats.slabs);
  }
  EXPECT_GT(hits, 100);
  EXPECT_GT(moves, 100);
  EXPECT_GT(refused, 100);
  EXPECT_GT(debts, 20);
  EXPECT_GT(shrunk, 10);
}

}  // namespace
}  // namespace hearth
