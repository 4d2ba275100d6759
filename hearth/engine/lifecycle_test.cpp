// SPDX-License-Identifier: Apache-2.0
// Models that come, get limits, and go while others serve: nobody's text changes, no request is lost, and what does not
// fit is refused with the arithmetic.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/model_needs.h"
#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;
using ::testing::HasSubstr;

std::shared_ptr<const ServedModel> model_a() {
  static const auto model = small_model("a", 1);
  return model;
}
std::shared_ptr<const ServedModel> model_b() {
  static const auto model = small_model("b", 2);
  return model;
}

constexpr int64_t kBlockBytes = 16 * 2 * 2 * 2 * 16 * 4;  // 16 tokens, 2 layers, K and V, 2 heads of 16, f32

std::unique_ptr<Engine> make_engine(const EngineOptions& options) {
  static const SteadyClock clock;
  auto engine = Engine::create(options, nullptr, clock);
  HEARTH_CHECK(engine.has_value(), "{}", engine.error().message);
  return std::move(engine).value();
}

EngineOptions options_of(int64_t blocks) {
  return {.threads = 2, .max_sequences = 8, .step_tokens = 64, .kv_bytes = blocks * kBlockBytes};
}

Request request_of(Random& random, int64_t prompt, int64_t max_tokens, std::shared_ptr<const ServedModel> of) {
  Request r;
  r.id = "test";
  r.model = std::move(of);
  r.prompt = random_prompt(random, prompt);
  r.max_tokens = max_tokens;
  r.params.temperature = 1;
  r.params.seed = random.next_u64();
  return r;
}

void expect_alone(Running& running) {
  ASSERT_TRUE(running.reader->wait());
  expect_same(running.reader->choice(), run_alone(running.request, 0));
}

TEST(Limits, ACapBoundsWhatAModelHas) {
  Random random(1);
  auto engine = make_engine(options_of(64));
  ASSERT_TRUE(engine->add_model(model_a()));
  EXPECT_EQ(engine->kv_tokens(*model_a()), 64 * 16);
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 4 * kBlockBytes, .cap_bytes = 10 * kBlockBytes + 1}));
  EXPECT_EQ(engine->kv_tokens(*model_a()), 10 * 16);
  std::vector<Running> all;
  for (int i = 0; i < 12; ++i) all.push_back(start(*engine, request_of(random, 40, 60, model_a())));
  for (Running& running : all) {
    ASSERT_TRUE(running.reader->wait_for_tokens(1));
    const std::vector<ModelStats> stats = engine->stats();
    EXPECT_LE(stats.at(0).kv.live, 10);
    EXPECT_EQ(stats.at(0).limits.cap_bytes, 10 * kBlockBytes + 1);
    EXPECT_EQ(stats.at(0).weight_bytes, model_a()->model->weights().memory.size_bytes());
  }
  for (Running& running : all) expect_alone(running);
  const auto refused = engine->submit(request_of(random, 150, 20, model_a()), [](Output&&) {});
  EXPECT_THAT(refused.error().message, HasSubstr("need a KV cache of 170 tokens; it holds 160"));
}

TEST(Limits, WhatCannotBeIsRefusedAndChangesNothing) {
  Random random(2);
  auto engine = make_engine(options_of(64));  // 16 slabs of 4 blocks
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  EXPECT_EQ(engine->set_limits("c", {}).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(engine->pin("c", true).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(engine->set_limits("a", {.guarantee_bytes = -1}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(engine->set_limits("a", {.cap_bytes = 100}).error().message,
              HasSubstr("a: a cap of 100 bytes is less than one KV block of 8192"));
  EXPECT_THAT(engine->set_limits("a", {.guarantee_bytes = 20000, .cap_bytes = 10000}).error().message,
              HasSubstr("a guarantee of 20000 bytes is more than the cap of 10000"));
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 40 * kBlockBytes}));
  const Status both = engine->set_limits("b", {.guarantee_bytes = 25 * kBlockBytes});
  EXPECT_EQ(both.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(both.error().message, HasSubstr("guarantees of 17 slabs (a 327680 bytes in 10 slabs, b 204800 bytes in "
                                              "7 slabs) are more than the KV pool's 16 slabs of 32768 bytes"));
  EXPECT_EQ(engine->kv_tokens(*model_b()), 64 * 16);

  // A request under way is not left without its blocks, by its model's cap or by what others are not lent any more.
  Request long_one = request_of(random, 100, 220, model_b());
  Running running = start(*engine, long_one);
  EXPECT_THAT(engine->set_limits("b", {.cap_bytes = 19 * kBlockBytes}).error().message,
              HasSubstr("a request of b under way needs 20 KV blocks of 8192 bytes; 19 would be left for it"));
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 48 * kBlockBytes}));
  EXPECT_THAT(engine->pin("a", true).error().message, HasSubstr("16 would be left for it"));
  expect_alone(running);
  while (!engine->pin("a", true)) std::this_thread::yield();
  EXPECT_EQ(engine->kv_tokens(*model_b()), 16 * 16);
  EXPECT_EQ(engine->kv_tokens(*model_a()), 64 * 16);
}

// What is kept for a model while it is short is nothing that others could never have.
TEST(Limits, AShortageOfOneLeavesOthersWhatTheyMayAsk) {
  Random random(5);
  EngineOptions options = options_of(32);  // 16 slabs of 2 blocks
  options.max_sequences = 4;
  auto engine = make_engine(options);
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  EXPECT_EQ(engine->kv_tokens(*model_a()), 32 * 16);
  std::vector<Running> all;
  for (int i = 0; i < 4; ++i) all.push_back(start(*engine, request_of(random, 100, 200, model_a())));
  ASSERT_TRUE(all[0].reader->wait_for_tokens(60));
  // More than its half: blocks are kept for it.
  all.push_back(start(*engine, request_of(random, 300, 10, model_b())));
  int64_t least = 32 * 16;
  for (int i = 0; i < 300 && !all.back().reader->choice().finish; ++i) {
    least = std::min(least, engine->kv_tokens(*model_a()));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(least, 32 * 16);
  for (Running& running : all) running.handle.cancel();
  for (Running& running : all) EXPECT_TRUE(running.reader->wait());
  EXPECT_EQ(engine->kv_tokens(*model_a()), 32 * 16);
}

// Each of two models comes to have all of its part, and to need more for the one sequence that it runs: one goes on, and
// the other one after it.
TEST(Limits, TwoThatOutgrowTheirPartsDoNotWaitForEachOther) {
  constexpr uint64_t kSeed = 6;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  EngineOptions options = options_of(32);
  options.max_sequences = 4;
  // By default parts, and promised the whole pool.
  for (const int64_t promised : {int64_t{0}, 16 * kBlockBytes}) {
    SCOPED_TRACE(promised);
    auto engine = make_engine(options);
    for (const auto& model : {model_a(), model_b()}) {
      ASSERT_TRUE(engine->add_model(model));
      ASSERT_TRUE(engine->set_limits(model->name, {.guarantee_bytes = promised}));
    }
    std::vector<Running> all;
    for (int i = 0; i < 4; ++i) all.push_back(start(*engine, request_of(random, 100, 200, model_a())));
    ASSERT_TRUE(all[0].reader->wait_for_tokens(60));
    for (int i = 0; i < 3; ++i) {
      all.push_back(start(*engine, request_of(random, 300, 10, model_b())));
      all.push_back(start(*engine, request_of(random, 200, 100, model_a())));
    }
    for (Running& running : all) expect_alone(running);
  }
}

// While it sleeps its guarantee is nobody's, and may be promised to others: then it cannot wake as it was.
TEST(Limits, WhoWakesIsGuaranteedNothingThatOthersHave) {
  Random random(4);
  auto engine = make_engine(options_of(64));
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  ASSERT_TRUE(engine->set_limits("b", {.guarantee_bytes = 40 * kBlockBytes}));
  ASSERT_TRUE(engine->sleep_model("b"));
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 40 * kBlockBytes}));
  const Status refused = engine->wake_model("b");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("guarantees of 20 slabs"));
  Running beside = start(*engine, request_of(random, 40, 20, model_a()));
  expect_alone(beside);
  EXPECT_EQ(engine->submit(request_of(random, 5, 5, model_b()), [](Output&&) {}).error().code, ErrorCode::kUnavailable);
  ASSERT_TRUE(engine->set_limits("a", {}));
  ASSERT_TRUE(engine->wake_model("b"));
  Running awake = start(*engine, request_of(random, 40, 20, model_b()));
  expect_alone(awake);
}

// What is said at the same moment happens in some order, and nobody waits for what never comes.
TEST(Lives, SleepAndRemovalMayMeet) {
  auto engine = make_engine(options_of(64));
  ASSERT_TRUE(engine->add_model(model_a()));
  const auto model = small_model("b", 2);
  const auto held = model.use_count();
  for (int round = 0; round < 200; ++round) {
    ASSERT_TRUE(engine->add_model(model));
    const bool wakes = round % 2 == 1;
    if (wakes) {
      ASSERT_TRUE(engine->sleep_model("b"));
    }
    std::thread mover([&] { (void)(wakes ? engine->wake_model("b") : engine->sleep_model("b")); });
    EXPECT_TRUE(engine->remove_model("b"));
    mover.join();
  }
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  while (model.use_count() > held && clock.now_ns() - begin_ns < 60'000'000'000) std::this_thread::yield();
  EXPECT_EQ(model.use_count(), held);
}

// What is said before a load is near what the load takes.
TEST(Needs, AreKnownFromTheHeaders) {
  const EngineOptions options = options_of(64);
  const auto needs = needs_of("models/fable-13m", "fable", {}, options);
  ASSERT_TRUE(needs) << needs.error().message;
  ThreadPool pool(1);
  const auto loaded = load_served_model("models/fable-13m", "fable", cpu_ops(), {}, pool);
  ASSERT_TRUE(loaded) << loaded.error().message;
  const int64_t weights = (*loaded)->model->weights().memory.size_bytes();
  EXPECT_NEAR(static_cast<double>(needs->weight_bytes), static_cast<double>(weights),
              0.05 * static_cast<double>(weights));
  EXPECT_GT(needs->buffer_bytes, 72 * 4 * (*loaded)->model->config().vocab_size);
  EXPECT_GT(needs->least_kv_bytes, 0);
  EXPECT_EQ(needs_of("models/none", "none", {}, options).error().code, ErrorCode::kNotFound);
}

// Which model is wanted turns over; its memory follows while it is wanted, and nobody loses a request.
// A second; the sanitizers' steps take many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kMoveNs = 60'000'000'000;
#else
constexpr int64_t kMoveNs = 1'000'000'000;
#endif

TEST(Lending, MemoryFollowsTheModelThatIsWanted) {
  Random random(3);
  EngineOptions options = options_of(96);
  options.max_sequences = 32;
  auto engine = make_engine(options);
  const std::shared_ptr<const ServedModel> models[] = {model_a(), model_b()};
  for (const auto& m : models) ASSERT_TRUE(engine->add_model(m));
  for (int round = 0; round < 4; ++round) {
    const auto hot = static_cast<size_t>(round % 2);
    std::vector<Running> all;
    for (int i = 0; i < 40; ++i) all.push_back(start(*engine, request_of(random, 60, 100, models[hot])));
    all.push_back(start(*engine, request_of(random, 60, 10, models[1 - hot])));
    const SteadyClock clock;
    const int64_t begin_ns = clock.now_ns();
    int64_t most = 0;
    while (most <= 64 && clock.now_ns() - begin_ns < kMoveNs) {
      most = std::max(most, engine->stats().at(hot).kv.live);
      std::this_thread::yield();
    }
    EXPECT_GT(most, 64) << "blocks of 96 within " << kMoveNs << " ns";
    for (Running& running : all) expect_alone(running);
  }
}

}  // namespace
}  // namespace hearth
