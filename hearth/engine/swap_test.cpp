// SPDX-License-Identifier: Apache-2.0
// Sequences that give up their KV to others and find it in host memory: no text is another one by it, and nothing of it
// is left behind.
#include "hearth/engine/swap_space.h"

#include <gtest/gtest.h>

#include <map>

#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

TEST(SwapSpace, PiecesDoNotOverlap) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  constexpr int64_t kSize = 1000;
  const Memory& memory = host_memory();
  const auto queue = memory.create_queue().value();
  const Buffer kv = memory.allocate(kSize).value();
  SwapSpace space = SwapSpace::create(memory, *queue, kv, kSize, SteadyClock()).value();
  EXPECT_GT(space.round_trip_us(1 << 20), 0);
  std::map<int64_t, int64_t> held;
  int taken = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    if (random.below(2) == 0 && !held.empty()) {
      const auto piece = std::next(held.begin(), random.below(std::ssize(held)));
      space.give_back(piece->first);
      held.erase(piece);
    }
    const int64_t bytes = 1 + random.below(200);
    const auto at = space.take(bytes);
    // There is a gap of that size exactly if it says so.
    int64_t largest = 0, end = 0, sum = 0;
    for (const auto& [begin, size] : held) {
      largest = std::max(largest, begin - end);
      end = begin + size;
      sum += size;
    }
    largest = std::max(largest, kSize - end);
    ASSERT_EQ(at.has_value(), largest >= bytes);
    at ? ++taken : ++refused;
    if (!at) continue;
    ASSERT_GE(*at, 0);
    ASSERT_LE(*at + bytes, kSize);
    for (const auto& [begin, size] : held) ASSERT_TRUE(*at + bytes <= begin || begin + size <= *at);
    held[*at] = bytes;
    ASSERT_EQ(space.used_bytes(), sum + bytes);
  }
  EXPECT_GT(taken, 1000);
  EXPECT_GT(refused, 1000);
  EXPECT_FALSE(SwapSpace().take(1));
}

constexpr int64_t kBlockBytes = 16 * 2 * 2 * 2 * 16 * 4;  // of two layers: 16 tokens, K and V, 2 heads of 16, f32

struct Model {
  std::shared_ptr<const ServedModel> shallow = small_model(), deeper = small_model("deeper", 5, cpu_ops(), 3);
};
const Model& models() {
  static const Model models;
  return models;
}

// A pool that holds a third of what is asked for at once.
std::unique_ptr<Engine> make_engine(int64_t swap_bytes) {
  static const SteadyClock clock;
  auto engine = Engine::create({.threads = 2,
                                .max_sequences = 8,
                                .step_tokens = 64,
                                .kv_bytes = 48 * kBlockBytes,
                                .kv_swap_bytes = swap_bytes,
                                .prefix_cache = false,
                                .max_unread = 1000},
                               nullptr, clock);
  HEARTH_CHECK(engine.has_value(), "{}", engine.error().message);
  for (const auto& model : {models().shallow, models().deeper}) {
    const Status added = (*engine)->add_model(model);
    HEARTH_CHECK(added.has_value(), "{}", added.error().message);
  }
  return std::move(engine).value();
}

Request random_request(Random& random) {
  Request request;
  request.model = random.below(3) == 0 ? models().deeper : models().shallow;
  request.prompt = random_prompt(random, 1 + random.below(100));
  request.max_tokens = 20 + random.below(180);
  request.n = 1 + static_cast<int32_t>(random.below(8) == 0);
  request.params.temperature = 1;
  request.params.seed = random.next_u64();
  if (random.below(6) == 0) request.prompt_logprobs = 2;
  return request;
}

int64_t swapped_out(const Engine& engine) {
  int64_t sum = 0;
  for (const ModelStats& m : engine.stats()) sum += m.swapped_out;
  return sum;
}

void expect_nothing_left(const Engine& engine) {
  for (size_t m = 0; m < 2; ++m) {
    const ModelStats stats = stats_when(engine, m, [](const ModelStats& s) {
      return s.running == 0 && s.waiting == 0 && s.swap_bytes == 0 && s.kv_blocks_used == 0;
    });
    EXPECT_EQ(stats.swap_bytes, 0);
    EXPECT_EQ(stats.kv_blocks_used, 0);
  }
}

TEST(Swap, NoTextIsAnotherOne) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  // All that gives way fits; hardly any of it does.
  for (const int64_t swap_bytes : {int64_t{4} << 20, 8 * kBlockBytes}) {
    SCOPED_TRACE(swap_bytes);
    const auto engine = make_engine(swap_bytes);
    for (int round = 0; round < 10 && (round < 3 || swapped_out(*engine) == 0); ++round) {
      std::vector<Running> all;
      for (int i = 0; i < 20; ++i) all.push_back(start(*engine, random_request(random)));
      for (Running& one : all) {
        ASSERT_TRUE(one.reader->wait());
        for (int32_t c = 0; c < one.request.n; ++c) expect_same(one.reader->choice(c), run_alone(one.request, c));
      }
    }
    EXPECT_GT(swapped_out(*engine), 0);
    expect_nothing_left(*engine);
  }
}

TEST(Swap, CancelledSequencesLeaveNothing) {
  constexpr uint64_t kSeed = 12;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const auto engine = make_engine(int64_t{4} << 20);
  for (int round = 0; round < 10 && (round < 3 || swapped_out(*engine) == 0); ++round) {
    std::vector<Running> all;
    for (int i = 0; i < 24; ++i) all.push_back(start(*engine, random_request(random)));
    for (size_t i = 0; i < all.size(); i += 2) {
      all[i].reader->wait_for_tokens(static_cast<size_t>(random.below(30)));
      all[i].handle.cancel();
    }
    for (Running& one : all) {
      ASSERT_TRUE(one.reader->wait());
      for (int32_t c = 0; c < one.request.n; ++c)
        if (one.reader->choice(c).finish != FinishReason::kCancelled)
          expect_same(one.reader->choice(c), run_alone(one.request, c));
    }
  }
  EXPECT_GT(swapped_out(*engine), 0);
  expect_nothing_left(*engine);
}

TEST(Swap, WithoutHostMemoryAllIsComputedAgain) {
  constexpr uint64_t kSeed = 13;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const auto engine = make_engine(0);
  std::vector<Running> all;
  for (int i = 0; i < 20; ++i) all.push_back(start(*engine, random_request(random)));
  for (Running& one : all) ASSERT_TRUE(one.reader->wait());
  EXPECT_EQ(swapped_out(*engine), 0);
}

}  // namespace
}  // namespace hearth
