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

// What was counted of a model and said of it does not go while it sleeps.
TEST(Lives, ASleepersNumbersStay) {
  Random random(7);
  EngineOptions options = options_of(64);
  options.slo = {.ttft_us = 60'000'000, .tpot_us = 60'000'000};
  auto engine = make_engine(options);
  ASSERT_TRUE(engine->add_model(model_a(), {.slo = {}, .weight = 3}));
  ASSERT_TRUE(engine->add_model(model_b()));
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 8 * kBlockBytes, .cap_bytes = 40 * kBlockBytes}));
  const Request request = request_of(random, 60, 10, model_a());
  for (int i = 0; i < 3; ++i) {
    Running running = start(*engine, request);
    expect_alone(running);
  }
  const auto of_a = [&] {
    const std::vector<ModelStats> all = engine->stats();
    const auto found = std::ranges::find(all, "a", &ModelStats::model);
    return found == all.end() ? ModelStats() : *found;
  };
  const auto expect_as_it_was = [&](int64_t asked) {
    const ModelStats stats = of_a();
    EXPECT_EQ(stats.model, "a");
    EXPECT_EQ(stats.attainment.answers, 3);
    EXPECT_EQ(stats.attainment.attained, 3);
    EXPECT_EQ(stats.limits.guarantee_bytes, 8 * kBlockBytes);
    EXPECT_EQ(stats.limits.cap_bytes, 40 * kBlockBytes);
    EXPECT_EQ(stats.slo.ttft_us, 60'000'000);
    EXPECT_EQ(stats.weight, 3);
    EXPECT_EQ(stats.block_tokens, 16);
    EXPECT_EQ(stats.kv.asked_blocks, asked);
    EXPECT_EQ(stats.kv.hit_blocks, 6);
    EXPECT_GT(stats.device_s, 0);
    EXPECT_EQ(stats.kv.live, 0);
    EXPECT_EQ(stats.running, 0);
  };
  for (int i = 0; i < 6000 && of_a().attainment.answers < 3; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const int64_t asked = of_a().kv.asked_blocks;
  expect_as_it_was(asked);
  ASSERT_TRUE(engine->sleep_model("a"));
  EXPECT_EQ(of_a().phase, ModelPhase::kAsleep);
  expect_as_it_was(asked);
  ASSERT_TRUE(engine->wake_model("a"));
  expect_as_it_was(asked);
}

// While it slept it saved nothing up, also where it fell asleep at work: who served meanwhile goes on beside it.
TEST(Lives, WhoSleptIsOwedNothing) {
  Random random(8);
  auto engine = make_engine(options_of(96));
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  Running at_work = start(*engine, request_of(random, 20, 40, model_b()));
  ASSERT_TRUE(at_work.reader->wait_for_tokens(1));
  ASSERT_TRUE(engine->sleep_model("b"));
  expect_alone(at_work);
  for (int i = 0; i < 6; ++i) {
    Running meanwhile = start(*engine, request_of(random, 20, 240, model_a()));
    expect_alone(meanwhile);
  }
  ASSERT_TRUE(engine->wake_model("b"));
  Running beside = start(*engine, request_of(random, 20, 240, model_a()));
  ASSERT_TRUE(beside.reader->wait_for_tokens(5));
  Running awake = start(*engine, request_of(random, 20, 240, model_b()));
  ASSERT_TRUE(awake.reader->wait());
  EXPECT_GT(beside.reader->tokens(), 100u) << "of 240, beside as many of a model of the same weight";
  expect_alone(beside);
}

// Who is pinned keeps what it was promised: who wakes beside it has to have room for a sequence, or stays asleep.
TEST(Limits, WhoWakesHasRoomForASequence) {
  Random random(9);
  auto engine = make_engine(options_of(64));  // 16 slabs of 4 blocks; a context of 320 tokens has 20 blocks
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  ASSERT_TRUE(engine->sleep_model("b"));
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 48 * kBlockBytes}));
  ASSERT_TRUE(engine->pin("a", true));
  const Status refused = engine->wake_model("b");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("b: no room for its KV: guarantees of 12 slabs, or 17 for the least "
                                                 "context beside what pinned models keep; the KV pool can have 16"));
  const auto needs = engine->needs_to_wake("b");
  ASSERT_TRUE(needs);
  EXPECT_EQ(needs->least_kv_bytes, 20 * kBlockBytes);
  EXPECT_EQ(engine->lacking_bytes(cpu_ops().memory(), *needs).value(), 4 * kBlockBytes) << "a slab";
  ASSERT_TRUE(engine->set_limits("a", {.guarantee_bytes = 44 * kBlockBytes}));
  EXPECT_EQ(engine->lacking_bytes(cpu_ops().memory(), *needs).value(), 0);
  // All of the pool is borrowed: what b needs comes from who borrows, and no text is another one.
  std::vector<Running> greedy;
  for (int i = 0; i < 12; ++i) greedy.push_back(start(*engine, request_of(random, 100, 200, model_a())));
  ASSERT_TRUE(greedy[0].reader->wait_for_tokens(1));
  ASSERT_TRUE(engine->wake_model("b"));
  Running whole = start(*engine, request_of(random, 300, 20, model_b()));
  expect_alone(whole);
  for (Running& running : greedy) expect_alone(running);
}

// Its requests have no end in sight: the operator's patience has one, and then nothing has happened.
TEST(Lives, ASleepHasADeadlineAndCanBeCalledOff) {
  Random random(10);
  EngineOptions options = options_of(64);
  options.max_unread = 4;
  auto engine = make_engine(options);
  ASSERT_TRUE(engine->add_model(model_a()));
  ASSERT_TRUE(engine->add_model(model_b()));
  Running unread = start(*engine, request_of(random, 20, 40, model_a()));
  ASSERT_TRUE(unread.reader->wait_for_tokens(4));
  const Status late = engine->sleep_model("a", {.wait_us = 20'000});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(late.error().message, HasSubstr("not within 20 ms: it waited for 1 requests of a that run or wait"));
  Running after = start(*engine, request_of(random, 20, 4, model_a()));
  expect_alone(after);
  std::atomic<bool> off = false;
  Status slept;
  std::thread sleeper([&] { slept = engine->sleep_model("a", {.wait_us = Patience::kForeverUs, .stop = &off}); });
  for (int i = 0; i < 6000 && engine->stats().at(0).phase == ModelPhase::kServing; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  // Others come and go meanwhile, and a model on its way is nobody else's.
  EXPECT_TRUE(engine->sleep_model("b"));
  EXPECT_TRUE(engine->wake_model("b"));
  EXPECT_THAT(engine->wake_model("a").error().message, HasSubstr("the model 'a' is falling asleep"));
  off = true;
  sleeper.join();
  ASSERT_FALSE(slept);
  EXPECT_EQ(slept.error().code, ErrorCode::kCancelled) << slept.error().message;
  unread.handle.consumed(0, 40);
  expect_alone(unread);
  EXPECT_TRUE(engine->sleep_model("a"));
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
