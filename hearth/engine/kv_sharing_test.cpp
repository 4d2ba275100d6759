// SPDX-License-Identifier: Apache-2.0
// Requests that begin alike, and models that share one KV pool: what is found, who gets what, and that nobody's text
// changes by it.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

std::shared_ptr<const ServedModel> model() {
  static const auto model = small_model();
  return model;
}

// Blocks of three layers: half as large again.
std::shared_ptr<const ServedModel> deeper() {
  static const auto model = small_model("deeper", 5, cpu_ops(), 3);
  return model;
}

constexpr int64_t kBlockBytes =
    16 * 2 * 2 * 2 * 16 * 4;  // of model(): 16 tokens, 2 layers, K and V, 2 heads of 16, f32

std::unique_ptr<Engine> make_engine(const EngineOptions& options) {
  static const SteadyClock clock;
  auto engine = Engine::create(options, nullptr, clock);
  HEARTH_CHECK(engine.has_value(), "{}", engine.error().message);
  const Status added = (*engine)->add_model(model());
  HEARTH_CHECK(added.has_value(), "{}", added.error().message);
  return std::move(engine).value();
}

Request request_of(std::vector<int32_t> prompt, int64_t max_tokens, std::shared_ptr<const ServedModel> of = model()) {
  Request r;
  r.id = "test";
  r.model = std::move(of);
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.params.temperature = 1;
  return r;
}

// Runs it to its end; prompt tokens that were found.
int64_t found(Engine& engine, const Request& request) {
  Running running = start(engine, request);
  EXPECT_TRUE(running.reader->wait());
  for (int32_t c = 0; c < request.n; ++c) expect_same(running.reader->choice(c), run_alone(request, c));
  return running.reader->choice().shared_prompt_tokens;
}

EngineOptions options_of(int64_t blocks) {
  return {.threads = 2, .max_sequences = 8, .step_tokens = 64, .kv_bytes = blocks * kBlockBytes};
}

TEST(KvSharing, AnIdlePoolIsToldAsItStands) {
  Random random(9);
  auto engine = make_engine(options_of(64));
  for (int i = 0; i < 3; ++i) found(*engine, request_of(random_prompt(random, 40), 3));
  int64_t live_bytes = -1;
  for (int i = 0; i < 400 && live_bytes != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    live_bytes = engine->kv_stats().at(0).live_bytes;
  }
  EXPECT_EQ(live_bytes, 0);
}

TEST(KvSharing, WhatBeginsAlikeIsComputedOnce) {
  Random random(1);
  auto engine = make_engine(options_of(64));
  const std::vector<int32_t> prompt = random_prompt(random, 100);
  Request request = request_of(prompt, 30);
  EXPECT_EQ(found(*engine, request), 0);
  EXPECT_EQ(found(*engine, request), 96);
  request.prompt.resize(97);
  EXPECT_EQ(found(*engine, request), 80);  // the last two tokens are fed
  request.prompt.resize(96);
  EXPECT_EQ(found(*engine, request), 80);
  request.prompt[40] ^= 1;
  EXPECT_EQ(found(*engine, request), 32);

  Request other = request_of(prompt, 5);
  other.cache_salt = "salt";
  EXPECT_EQ(found(*engine, other), 0);
  other.tenant = "key-1";
  EXPECT_EQ(found(*engine, other), 0);
  EXPECT_EQ(found(*engine, other), 96);

  // Rows of logits are wanted for all of the prompt.
  Request scored = request_of(prompt, 5);
  scored.prompt_logprobs = 1;
  EXPECT_EQ(found(*engine, scored), 0);
}

TEST(KvSharing, TheNextTurnFindsTheTextOfTheLast) {
  Random random(2);
  auto engine = make_engine(options_of(64));
  Running first = start(*engine, request_of(random_prompt(random, 50), 60));
  ASSERT_TRUE(first.reader->wait());
  const std::vector<int32_t> text = first.reader->choice().ids;
  ASSERT_EQ(text.size(), 60u);
  Request next = first.request;
  next.prompt.insert(next.prompt.end(), text.begin(), text.end());
  for (const int32_t id : random_prompt(random, 20)) next.prompt.push_back(id);
  EXPECT_EQ(found(*engine, next), 96);  // of 109 computed: the last token was drawn and not fed
}

TEST(KvSharing, NothingIsFoundWithoutACache) {
  Random random(3);
  EngineOptions options = options_of(64);
  options.prefix_cache = false;
  auto engine = make_engine(options);
  const Request request = request_of(random_prompt(random, 100), 3);
  EXPECT_EQ(found(*engine, request), 0);
  EXPECT_EQ(found(*engine, request), 0);
}

// Prompts with few beginnings, a pool far too small for all that runs: hits, evictions and preemptions at once.
TEST(KvSharing, UnderPressureEveryTextIsItsSingleRun) {
  constexpr uint64_t kSeed = 20261123;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  auto engine = make_engine(options_of(24));
  const std::vector<int32_t> beginnings[] = {random_prompt(random, 120), random_prompt(random, 120)};
  std::vector<Running> all;
  int64_t shared = 0;
  for (int i = 0; i < 80; ++i) {
    const auto& beginning = beginnings[random.below(2)];
    std::vector<int32_t> prompt(beginning.begin(), beginning.begin() + random.below(120));
    for (const int32_t id : random_prompt(random, 1 + random.below(20))) prompt.push_back(id);
    Request request = request_of(std::move(prompt), 1 + random.below(40));
    request.params.seed = random.next_u64();
    if (random.below(4) == 0) request.n = static_cast<int32_t>(1 + random.below(3));
    all.push_back(start(*engine, request));
  }
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait());
    for (int32_t c = 0; c < running.request.n; ++c)
      expect_same(running.reader->choice(c), run_alone(running.request, c));
    shared += running.reader->choice().shared_prompt_tokens;
  }
  EXPECT_GT(shared, 500);
}

// Two formats in one pool: slabs change hands, and no text is another one.
TEST(KvSharing, ModelsOfDifferentBlocksShareOnePool) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  auto engine = make_engine(options_of(96));  // 16 slabs of 6 blocks; of the deeper model 4
  ASSERT_TRUE(engine->add_model(deeper()));
  EXPECT_EQ(engine->kv_tokens(*model()), 96 * 16);
  EXPECT_EQ(engine->kv_tokens(*deeper()), 64 * 16);
  for (int round = 0; round < 4; ++round) {
    std::vector<Running> all;
    for (int i = 0; i < 40; ++i) {
      // Which model is wanted most changes.
      const bool small = random.below(10) < (round % 2 == 0 ? 8 : 2);
      Request request =
          request_of(random_prompt(random, 1 + random.below(150)), 1 + random.below(120), small ? model() : deeper());
      request.params.seed = random.next_u64();
      all.push_back(start(*engine, request));
    }
    for (Running& running : all) {
      ASSERT_TRUE(running.reader->wait());
      expect_same(running.reader->choice(), run_alone(running.request, 0));
    }
  }
  const std::vector<KvPoolStats> pools = engine->kv_stats();
  ASSERT_EQ(pools.size(), 1u);
  EXPECT_EQ(pools[0].models.size(), 2u);
  ASSERT_TRUE(engine->remove_model("deeper"));
}

// Blocks of sequences that wait for their readers lie in slabs that others left: a model that is short of slabs has
// them put together, and no text is another one.
TEST(KvSharing, BlocksMoveForAModelThatIsShort) {
  constexpr size_t kSmall = 30;  // sequences of 3 blocks, two to a slab
  Random random(10);
  EngineOptions options = options_of(96);
  options.max_sequences = 40;
  options.max_unread = 1;
  options.prefix_cache = false;
  auto engine = make_engine(options);
  ASSERT_TRUE(engine->add_model(deeper()));
  std::vector<Running> all;
  for (size_t i = 0; i < kSmall; ++i) {
    all.push_back(start(*engine, request_of(random_prompt(random, 40), 60)));
    ASSERT_TRUE(all.back().reader->wait_for_tokens(1));
  }
  const auto read_all = [&](size_t i) {
    all[i].handle.consumed(0, all[i].request.max_tokens);
    ASSERT_TRUE(all[i].reader->wait());
    expect_same(all[i].reader->choice(), run_alone(all[i].request, 0));
  };
  for (size_t i = 0; i < kSmall; i += 2) read_all(i);
  const auto moved = [&] { return engine->kv_stats().at(0).moved_blocks; };
  ASSERT_EQ(moved(), 0);
  // Of 19 blocks each, where its part is 32 and the slabs that are whole have few.
  for (int i = 0; i < 4; ++i) all.push_back(start(*engine, request_of(random_prompt(random, 290), 10, deeper())));
  for (int i = 0; i < 6000 && moved() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_GT(moved(), 0);
  for (size_t i = 1; i < all.size(); i += i < kSmall - 1 ? 2 : 1) read_all(i);
}

// A model that comes while another has all of the memory, and a queue, gets its part before the queue is through; and
// what one sequence needs if that is more: 20 of the 32 blocks that the pool can hold of it, where its part is 16.
TEST(KvSharing, AModelGetsItsPartFromOneThatBorrows) {
  Random random(8);
  EngineOptions options = options_of(64);
  options.max_sequences = 16;
  auto engine = make_engine(options);
  ASSERT_TRUE(engine->add_model(deeper()));
  std::vector<Running> greedy;
  for (int i = 0; i < 40; ++i) greedy.push_back(start(*engine, request_of(random_prompt(random, 20), 240)));
  ASSERT_TRUE(greedy[0].reader->wait_for_tokens(50));
  for (const int64_t prompt : {100, 290}) {
    Running needy = start(*engine, request_of(random_prompt(random, prompt), 20, deeper()));
    ASSERT_TRUE(needy.reader->wait());
    expect_same(needy.reader->choice(), run_alone(needy.request, 0));
  }
  const auto unfinished = std::ranges::count_if(greedy, [](const Running& r) { return !r.reader->choice().finish; });
  EXPECT_GT(unfinished, 20);
  for (Running& running : greedy) {
    ASSERT_TRUE(running.reader->wait());
    expect_same(running.reader->choice(), run_alone(running.request, 0));
  }
}

}  // namespace
}  // namespace hearth
