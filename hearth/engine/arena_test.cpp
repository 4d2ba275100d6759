// SPDX-License-Identifier: Apache-2.0
// One memory for weights and KV: models come, go, sleep and wake on a small device while others serve, the KV pool gives
// and takes what they need, and nobody's text changes. On the CPU's ops over memory that is none of the host's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "hearth/base/random.h"
#include "hearth/engine/test_util.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using namespace engine_test;
using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kTotal = 24 * kMiB, kBuffers = 3 * kMiB;

hearth::testing::FakeDevice& device() {
  static hearth::testing::FakeDevice device(kTotal);
  return device;
}

const OpTable& ops() {
  static const OpTable table = [] {
    OpTable t = cpu_ops();
    t.memory = []() -> const Memory& { return device(); };
    return t;
  }();
  return table;
}

// Tokens are bytes, so that logits are few; a layer has 135 KiB of weights.
std::shared_ptr<const ServedModel> on_device(const std::string& name, int64_t layers) {
  return small_model(name, static_cast<uint64_t>(layers), ops(), layers, true);
}
// The same, alone and elsewhere.
std::shared_ptr<const ServedModel> on_host(int64_t layers) {
  return small_model("alone", static_cast<uint64_t>(layers), cpu_ops(), layers, true);
}

class Arena : public ::testing::Test {
 protected:
  void SetUp() override { make(true); }
  void make(bool graphs, int64_t max_unread = 256) {
    engine_.reset();
    ASSERT_EQ(device().held_bytes(), 0);
    auto made = Engine::create({.threads = 2,
                                .max_sequences = 4,
                                .step_tokens = 64,
                                .memory_bytes = kTotal,
                                .decode_graphs = graphs,
                                .max_unread = max_unread},
                               &gaps_, clock_);
    ASSERT_TRUE(made) << made.error().message;
    engine_ = std::move(*made);
  }
  void TearDown() override {
    engine_.reset();
    models_.clear();
    EXPECT_EQ(device().held_bytes(), 0);
  }

  ModelNeeds needs_of(const std::string& name, int64_t layers) const {
    const auto twin = on_host(layers);
    return {.name = name,
            .weight_bytes = twin->model->weights().memory.size_bytes(),
            .buffer_bytes = kBuffers,
            .least_kv_bytes = 20 * layers * 4096};
  }
  // As a server does it: room, weights, engine.
  Status load(const std::string& name, int64_t layers) {
    HEARTH_TRY_ASSIGN(MemoryRoom room, engine_->make_room(device(), needs_of(name, layers)));
    auto served = on_device(name, layers);
    HEARTH_TRY(engine_->add_model(served, {}, std::move(room)));
    models_[name] = std::move(served);
    return {};
  }
  Status unload(const std::string& name) {
    models_.erase(name);
    return engine_->remove_model(name);
  }
  Request request_of(std::shared_ptr<const ServedModel> model, int64_t prompt, int64_t max_tokens) {
    Request r;
    r.id = "test";
    r.model = std::move(model);
    for (int64_t i = 0; i < prompt; ++i) r.prompt.push_back(static_cast<int32_t>(random_.below(200)));
    r.max_tokens = max_tokens;
    r.params.temperature = 1;
    r.params.seed = random_.next_u64();
    return r;
  }
  void expect_alone(Running& running, int64_t layers) {
    ASSERT_TRUE(running.reader->wait());
    Request alone = running.request;
    alone.model = on_host(layers);
    expect_same(running.reader->choice(), run_alone(alone, 0));
  }
  // Some milliseconds on a quiet machine.
  template <class Condition>
  ::testing::AssertionResult soon(Condition condition) {
    const int64_t begin_ns = clock_.now_ns();
    while (clock_.now_ns() - begin_ns < 60'000'000'000) {
      if (condition()) return ::testing::AssertionSuccess();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return ::testing::AssertionFailure() << "not within a minute";
  }
  int64_t pool_bytes() { return engine_->memory_stats().at(0).pool_bytes; }

  struct Gaps final : EngineObserver {
    std::atomic<int64_t> preemptions = 0;
    void on_step(const StepRecord& record) override { preemptions += record.preemptions; }
    void on_choice(const ChoiceRecord&) override {}
  };
  Gaps gaps_;
  const SteadyClock clock_;
  Random random_{20261123};
  std::map<std::string, std::shared_ptr<const ServedModel>> models_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(Arena, ThePoolHasWhatModelsLeaveAndGivesItBack) {
  ASSERT_TRUE(load("a", 2));
  const int64_t alone = pool_bytes();
  EXPECT_GT(alone, 7 * kMiB);
  EXPECT_LE(device().held_bytes(), kTotal);
  ASSERT_TRUE(load("b", 12));
  const int64_t beside = pool_bytes();
  EXPECT_LT(beside, alone - 12 * 128 * 1024);
  EXPECT_LE(device().held_bytes(), kTotal);
  const std::vector<DeviceMemoryStats> stats = engine_->memory_stats();
  EXPECT_EQ(stats.at(0).total_bytes, kTotal);
  EXPECT_EQ(stats.at(0).room_bytes, 0);
  ASSERT_TRUE(unload("b"));
  EXPECT_TRUE(soon([&] { return pool_bytes() >= alone; })) << pool_bytes() << " of " << alone;
}

// Its last user is gone long before its memory is.
TEST_F(Arena, ThePoolHasWhatIsFreedSlowly) {
  ASSERT_TRUE(load("a", 2));
  ASSERT_TRUE(load("b", 12));
  const int64_t beside = pool_bytes();
  std::shared_ptr<const ServedModel> used = models_.at("b");
  ASSERT_TRUE(unload("b"));
  // Its step buffers are back; its weights, of more than a slab, are still used.
  ASSERT_TRUE(soon([&] { return pool_bytes() > beside && device().held_bytes() > kTotal - kMiB; }));
  const int64_t without_weights = pool_bytes();
  device().free_ms = 200;
  used.reset();
  EXPECT_TRUE(soon([&] { return pool_bytes() > without_weights; })) << device().held_bytes() << " bytes are held";
  device().free_ms = 0;
}

// The issue's own: what B leaves and what D needs beyond it need not lie side by side.
TEST_F(Arena, AModelLargerThanTheOneThatWentFits) {
  for (const auto& [name, layers] : {std::pair("a", 16), std::pair("b", 32), std::pair("c", 16)})
    ASSERT_TRUE(load(name, layers)) << name;
  EXPECT_THAT(load("d", 48).error().message, HasSubstr("Unload one, or put it to sleep"));
  ASSERT_TRUE(unload("b"));
  const auto d = [&]() -> Status {
    Status loaded;
    EXPECT_TRUE(soon([&] { return static_cast<bool>(loaded = load("d", 48)); }));
    return loaded;
  }();
  ASSERT_TRUE(d) << d.error().message;
  EXPECT_LE(device().held_bytes(), kTotal);
}

TEST_F(Arena, WhatCanNeverFitIsRefusedAtOnce) {
  ASSERT_TRUE(load("a", 2));
  ModelNeeds needs = needs_of("huge", 4);
  needs.weight_bytes = kTotal;
  const int64_t before = pool_bytes();
  const auto room = engine_->make_room(device(), needs);
  ASSERT_FALSE(room);
  EXPECT_EQ(room.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(room.error().message,
            fmt::format("huge can never fit: {} bytes of weights, {} for its steps and at least {} of KV are {} bytes; "
                        "the device has {}",
                        kTotal, kBuffers, 20 * 4 * 4096, kTotal + kBuffers + 20 * 4 * 4096, kTotal));
  EXPECT_GE(pool_bytes(), before);
}

// Load, unload, sleep, wake, limits, under load: every text is its single run, and nobody waits long for a token.
TEST_F(Arena, LivesOfOthersChangeNoText) {
  ASSERT_TRUE(load("a", 2));
  std::atomic<bool> over = false;
  std::thread operator_thread([&] {
    for (int round = 0; round < 3; ++round) {
      EXPECT_TRUE(load("b", 20));
      EXPECT_TRUE(engine_->set_limits("b", {.guarantee_bytes = 100'000}));
      EXPECT_TRUE(engine_->sleep_model("b"));
      EXPECT_TRUE(engine_->wake_model("b"));
      EXPECT_TRUE(unload("b"));
    }
    over = true;
  });
  const auto a = models_["a"];
  int64_t texts = 0;
  while (!over || texts == 0) {
    std::vector<Running> all;
    for (int i = 0; i < 6; ++i) all.push_back(start(*engine_, request_of(a, 100, 60)));
    for (Running& running : all) {
      expect_alone(running, 2);
      ++texts;
    }
  }
  operator_thread.join();
  EXPECT_LE(device().held_bytes(), kTotal);
}

TEST_F(Arena, ASleepingModelHasNothingAndWakesAsItWas) {
  ASSERT_TRUE(load("a", 2));
  ASSERT_TRUE(load("b", 20));
  const auto b = models_["b"];
  const int64_t weights = b->model->weights().memory.size_bytes();
  Running before = start(*engine_, request_of(b, 50, 40));
  const int64_t awake = pool_bytes();
  ASSERT_TRUE(engine_->sleep_model("b"));  // what runs, runs to its end
  EXPECT_TRUE(before.reader->choice().finish.has_value());
  expect_alone(before, 20);
  EXPECT_TRUE(soon([&] { return pool_bytes() > awake + weights / 2; }));
  const auto refused = engine_->submit(request_of(b, 5, 5), [](Output&&) {});
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(refused.error().message, HasSubstr("the model 'b' is asleep"));
  const auto asleep = engine_->stats();
  const auto row = std::ranges::find(asleep, "b", &ModelStats::model);
  ASSERT_NE(row, asleep.end());
  EXPECT_EQ(row->phase, ModelPhase::kAsleep);
  EXPECT_EQ(row->weight_bytes, 0);
  EXPECT_EQ(engine_->set_limits("b", {}).error().code, ErrorCode::kUnavailable);
  EXPECT_TRUE(engine_->sleep_model("b"));  // it does
  ASSERT_TRUE(engine_->wake_model("b"));
  EXPECT_TRUE(engine_->wake_model("b"));
  Running after = start(*engine_, request_of(b, 50, 40));
  expect_alone(after, 20);
  EXPECT_EQ(engine_->sleep_model("c").error().code, ErrorCode::kNotFound);
  ASSERT_TRUE(engine_->pin("b", true));
  EXPECT_THAT(engine_->sleep_model("b").error().message, HasSubstr("b is pinned"));
  Running pinned = start(*engine_, request_of(b, 5, 5));
  expect_alone(pinned, 20);
}

// A host without memory for its weights costs the sleep, and nobody anything else.
TEST_F(Arena, ASleepThatThrowsLeavesTheModelServing) {
  ASSERT_TRUE(load("a", 2));
  const auto a = models_["a"];
  device().throwing_stagings = 1;
  const Status slept = engine_->sleep_model("a");
  ASSERT_FALSE(slept);
  EXPECT_EQ(slept.error().code, ErrorCode::kResourceExhausted) << slept.error().message;
  Running after = start(*engine_, request_of(a, 50, 40));
  expect_alone(after, 2);
  EXPECT_TRUE(engine_->sleep_model("a"));
}

// It waits for memory that others hold: who removes it meanwhile has it removed.
TEST_F(Arena, AModelThatIsRemovedWhileItWakesIsGone) {
  make(false, 4);
  ASSERT_TRUE(load("a", 16));
  ASSERT_TRUE(load("b", 20));
  const std::weak_ptr<const ServedModel> b = models_["b"];
  // Nobody reads: each of them keeps its 20 blocks.
  std::vector<Running> all;
  for (int i = 0; i < 4; ++i) all.push_back(start(*engine_, request_of(models_["a"], 305, 10)));
  for (Running& one : all) ASSERT_TRUE(one.reader->wait_for_tokens(4));
  const int64_t awake = pool_bytes(), weights = models_["b"]->model->weights().memory.size_bytes();
  ASSERT_TRUE(engine_->sleep_model("b"));
  ASSERT_TRUE(soon([&] { return pool_bytes() > awake + weights / 2; }));  // its memory is back, and counted below
  // The pool and what is free are left 8 MB: enough for these requests, which hold 6.3, but not for b, of 2.8, as well.
  std::vector<MemoryRoom> rooms;
  for (int64_t left = kTotal - device().held_bytes() + pool_bytes(); left > 8'000'000; left -= kMiB / 4) {
    auto room = engine_->make_room(device(), {.name = "room", .weight_bytes = kMiB / 4});
    ASSERT_TRUE(room) << room.error().message;
    rooms.push_back(std::move(*room));
  }
  // Who has less patience is told what it waited for, and b sleeps on.
  const Status late = engine_->wake_model("b", {.wait_us = 20'000});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ErrorCode::kDeadlineExceeded);
  EXPECT_THAT(late.error().message, HasSubstr("b: not within 20 ms: it waited for "));
  EXPECT_THAT(late.error().message, HasSubstr("requests hold the rest in the KV pool"));
  Status woken;
  std::thread waker([&] { woken = engine_->wake_model("b", {.wait_us = 60'000'000}); });
  const auto wakes = [&] {
    return std::ranges::any_of(engine_->stats(), [](const auto& m) { return m.phase == ModelPhase::kWaking; });
  };
  EXPECT_TRUE(soon(wakes));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_TRUE(wakes()) << "it has to wait";
  EXPECT_TRUE(unload("b"));
  for (Running& one : all) one.handle.consumed(0, 1000);
  waker.join();
  ASSERT_FALSE(woken);
  EXPECT_EQ(woken.error().code, ErrorCode::kNotFound) << woken.error().message;
  EXPECT_TRUE(soon([&] { return b.expired(); }));
  for (Running& one : all) expect_alone(one, 16);
}

// Weights come while requests hold the whole pool: they go on, those that wait come later, none is lost.
TEST_F(Arena, AFullPoolGivesWhatItsRequestsDoNotNeed) {
  ASSERT_TRUE(load("a", 16));
  const auto a = models_["a"];
  std::vector<Running> all;
  for (int i = 0; i < 30; ++i) all.push_back(start(*engine_, request_of(a, 200, 100)));
  ASSERT_TRUE(all[0].reader->wait_for_tokens(1));
  const Status loaded = load("b", 16);
  EXPECT_TRUE(loaded) << loaded.error().message;
  for (Running& running : all) expect_alone(running, 16);
  Running other = start(*engine_, request_of(models_["b"], 20, 20));
  expect_alone(other, 16);
}

}  // namespace
}  // namespace hearth
