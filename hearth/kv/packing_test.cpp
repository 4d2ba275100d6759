// SPDX-License-Identifier: Apache-2.0
// How full a pool gets: five formats under pressure, popularity that shifts, lengths as conversations have them.
// Written tokens of admitted sequences against the bytes of the pool; the simulator has the same with real traces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/base/random.h"
#include "hearth/kv/fineserve_pool.h"
#include "hearth/kv/slab_pool.h"

namespace hearth {
namespace {

constexpr int64_t kPoolBytes = int64_t{40} << 30, kBlockTokens = 16;

struct Format {
  int64_t layers, token_bytes;
};
// 8B in bf16, fp8 and int4, 32B in fp8, and 36 layers in bf16: 8 KV heads of 128.
constexpr Format kFormats[] = {{32, 131072}, {32, 65536}, {32, 34816}, {64, 131072}, {36, 147456}};

KvModelSpec spec_of(const Format& format) {
  return {
      .name = "model", .block_tokens = kBlockTokens, .block_bytes = format.token_bytes * kBlockTokens, .limits = {}};
}

struct Use {
  double mean = 0, worst = 1;
  double moved_per_step = 0;  // bytes
  // Parts of the pool, on average: half-empty last blocks, slabs' tails, free columns, empty slabs.
  double ends = 0, tails = 0, holes = 0, empty = 0;
};

class Load {
 public:
  Load(KvPool& pool, uint64_t seed, int64_t max_moved_bytes)
      : pool_(pool), random_(seed), max_moved_(max_moved_bytes) {}

  // A step: all grow by a token, the finished go, and the queue moves up as far as there is room. Half a block for each
  // running sequence is left to grow into.
  Use run(int steps, int warm_up) {
    Use use;
    for (int step = 0; step < steps; ++step) {
      if (step % 500 == 0)
        std::ranges::for_each(popularity_, [&](double& p) { p = std::pow(1 + random_.below(5), -1.5); });
      for (Sequence& s : running_) grow(s);
      std::erase_if(running_, [&](Sequence& s) {
        if (!s.blocks.empty() && s.tokens >= s.end) pool_.release(std::exchange(s.blocks, {}));
        return s.blocks.empty();
      });
      for (const KvMove& move : pool_.compact(max_moved_))
        use.moved_per_step += static_cast<double>(move.size_bytes) / steps;
      while (admit()) {}
      if (step < warm_up) continue;
      double written = 0;
      for (const Sequence& s : running_)
        written += static_cast<double>(s.tokens * kFormats[s.model].token_bytes) / kPoolBytes;
      use.mean += written / (steps - warm_up);
      use.worst = std::min(use.worst, written);
      const KvPoolStats stats = pool_.stats();
      const double share = 1.0 / kPoolBytes / (steps - warm_up);
      use.ends += static_cast<double>(stats.live_bytes) * share - written / (steps - warm_up);
      use.tails += static_cast<double>(stats.tail_bytes) * share;
      use.holes += static_cast<double>(stats.free_bytes) * share;
      use.empty += static_cast<double>(stats.empty_slabs * pool_.slab_bytes()) * share;
    }
    return use;
  }

 private:
  struct Sequence {
    KvModelId model = 0;
    int64_t tokens = 0, end = 0;
    std::vector<KvBlock> blocks;
  };

  Sequence next() {
    double sum = 0;
    for (const double p : popularity_) sum += p;
    double at = random_.uniform() * sum;
    KvModelId model = 0;
    while (model < 4 && at > popularity_[model]) at -= popularity_[model++];
    const int64_t prompt = std::clamp<int64_t>(std::lround(std::exp(6.6 + 1.0 * random_.normal())), 1, 14000);
    return {.model = model, .tokens = prompt, .end = prompt + 1 + random_.below(400), .blocks = {}};
  }

  bool admit() {
    if (!pool_.admits()) return false;
    if (!waiting_) waiting_ = next();
    Sequence& s = *waiting_;
    double growth = 0;
    for (const Sequence& r : running_) growth += 0.5 * static_cast<double>(kFormats[r.model].token_bytes);
    const int64_t blocks = (s.tokens + kBlockTokens - 1) / kBlockTokens;
    const auto spare = static_cast<int64_t>(growth / static_cast<double>(kFormats[s.model].token_bytes));
    if (blocks + spare > pool_.available(s.model) || !pool_.allocate(s.model, blocks, s.blocks)) return false;
    running_.push_back(std::move(s));
    waiting_.reset();
    return true;
  }

  void grow(Sequence& s) {
    if (s.blocks.empty()) return;
    if (++s.tokens <= std::ssize(s.blocks) * kBlockTokens) return;
    while (!s.blocks.empty() && !pool_.allocate(s.model, 1, s.blocks)) {
      const auto victim = pool_.victim_for(s.model);
      ASSERT_TRUE(victim);
      const auto last = std::find_if(running_.rbegin(), running_.rend(),
                                     [&](const Sequence& r) { return r.model == *victim && !r.blocks.empty(); });
      ASSERT_NE(last, running_.rend());
      pool_.release(std::exchange(last->blocks, {}));
      pool_.compact(max_moved_);
    }
  }

  KvPool& pool_;
  Random random_;
  const int64_t max_moved_;
  double popularity_[5] = {};
  std::vector<Sequence> running_;
  std::optional<Sequence> waiting_;
};

std::unique_ptr<SlabPool> five_models() {
  auto pool = std::move(*SlabPool::create({.slabs = kPoolBytes >> 24, .low_slabs = 8, .high_slabs = 16, .secret = {}}));
  for (const Format& format : kFormats) HEARTH_CHECK(pool->add_model(spec_of(format)), "a model does not fit");
  return pool;
}

TEST(Packing, FiveFormatsUnderPressureFillThePool) {
  std::vector<FineServeModel> models;
  for (const Format& format : kFormats) models.push_back({.spec = spec_of(format), .layers = format.layers});
  for (const uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(seed);
    const auto pool = five_models(), still = five_models();
    const auto fineserve = std::move(*FineServePool::create(kPoolBytes, models, seed));
    const Use use = Load(*pool, seed, int64_t{1} << 30).run(2000, 200);
    const Use unmoved = Load(*still, seed, 0).run(2000, 200);
    const Use theirs = Load(*fineserve, seed, 0).run(2000, 200);
    std::printf(
        "seed %d: mean %.3f, worst %.3f, %.0f MiB moved a step; ends %.3f, tails %.3f, holes %.3f, empty %.3f; without "
        "moves %.3f, %.3f; FineServe's rule %.3f, %.3f\n",
        static_cast<int>(seed), use.mean, use.worst, use.moved_per_step / (1 << 20), use.ends, use.tails, use.holes,
        use.empty, unmoved.mean, unmoved.worst, theirs.mean, theirs.worst);
    EXPECT_GE(use.mean, 0.94);
    EXPECT_GE(use.worst, 0.88);
    EXPECT_GT(use.mean, unmoved.mean);
    EXPECT_GT(unmoved.mean, theirs.mean);
  }
}

}  // namespace
}  // namespace hearth
