// SPDX-License-Identifier: Apache-2.0
// What models are served with, and what the engine tells of how that was kept.
#include <gtest/gtest.h>

#include <atomic>

#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

constexpr Slo kNever{.ttft_us = 1}, kAlways{.ttft_us = 3'600'000'000, .tpot_us = 3'600'000'000};

Request request_of(const std::shared_ptr<const ServedModel>& model, const Slo& slo = {}) {
  Request r;
  r.model = model;
  r.prompt = {1, 2, 3};
  r.max_tokens = 4;
  r.slo = slo;
  return r;
}

TEST(ServiceTerms, TargetsAreTheRequestsThenTheModelsThenTheEngines) {
  const auto first = small_model("first", 1), second = small_model("second", 5);
  const SteadyClock clock;
  auto engine = Engine::create({.threads = 2, .slo = kAlways}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  ASSERT_TRUE((*engine)->add_model(first, {.slo = kNever}));
  ASSERT_TRUE((*engine)->add_model(second));
  std::vector<Running> all;
  for (int i = 0; i < 3; ++i) all.push_back(start(**engine, request_of(first)));
  all.push_back(start(**engine, request_of(first, kAlways)));
  for (int i = 0; i < 2; ++i) all.push_back(start(**engine, request_of(second)));
  all.push_back(start(**engine, request_of(second, kNever)));
  for (Running& one : all) {
    ASSERT_TRUE(one.reader->wait());
    expect_same(one.reader->choice(), run_alone(one.request, 0));
  }
  const ModelStats a = stats_when(**engine, 0, [](const ModelStats& m) { return m.attainment.answers == 4; });
  EXPECT_EQ(a.slo.ttft_us, 1);
  EXPECT_EQ(a.slo.tpot_us, kAlways.tpot_us);
  EXPECT_EQ(a.attainment.answers, 4);
  EXPECT_EQ(a.attainment.attained, 1);
  EXPECT_EQ(a.attainment.first_late, 3);
  EXPECT_EQ(a.attainment.pace_missed, 0);
  const ModelStats b = stats_when(**engine, 1, [](const ModelStats& m) { return m.attainment.answers == 3; });
  EXPECT_EQ(b.slo.ttft_us, kAlways.ttft_us);
  EXPECT_EQ(b.attainment.answers, 3);
  EXPECT_EQ(b.attainment.attained, 2);
  EXPECT_EQ(b.attainment.first_late, 1);
}

TEST(ServiceTerms, AnswersWithoutTargetsDoNotCount) {
  const auto model = small_model();
  const SteadyClock clock;
  auto engine = Engine::create({.threads = 1}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  ASSERT_TRUE((*engine)->add_model(model));
  Running plain = start(**engine, request_of(model));
  ASSERT_TRUE(plain.reader->wait());
  Running timed = start(**engine, request_of(model, {.tpot_us = 3'600'000'000}));
  ASSERT_TRUE(timed.reader->wait());
  const ModelStats stats = stats_when(**engine, 0, [](const ModelStats& m) { return m.attainment.answers > 0; });
  EXPECT_EQ(stats.attainment.answers, 1);
  EXPECT_EQ(stats.attainment.attained, 1);
}

// Answered before anything of them is computed, all choices of them; others do not notice.
TEST(ServiceTerms, TheHopelessAreRefusedIfAsked) {
  const auto model = small_model();
  const SteadyClock clock;
  auto engine = Engine::create({.threads = 2, .reject_hopeless = true}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  ASSERT_TRUE((*engine)->add_model(model));
  Request late = request_of(model, kNever);
  late.n = 3;
  std::vector<Running> refused, served;
  for (int i = 0; i < 4; ++i) {
    refused.push_back(start(**engine, late));
    served.push_back(start(**engine, request_of(model, i % 2 == 0 ? Slo{} : kAlways)));
  }
  for (Running& one : refused) {
    ASSERT_TRUE(one.reader->wait());
    for (int32_t c = 0; c < 3; ++c) {
      const ReadChoice choice = one.reader->choice(c);
      EXPECT_EQ(choice.finish, FinishReason::kError);
      ASSERT_TRUE(choice.error);
      EXPECT_EQ(choice.error->code, ErrorCode::kResourceExhausted);
      EXPECT_NE(choice.error->message.find("target of 1e-06 s"), std::string::npos) << choice.error->message;
      EXPECT_TRUE(choice.ids.empty());
      EXPECT_EQ(choice.pieces_after_end, 0);
    }
  }
  for (Running& one : served) {
    ASSERT_TRUE(one.reader->wait());
    expect_same(one.reader->choice(), run_alone(one.request, 0));
  }
  const ModelStats stats = stats_when(**engine, 0, [](const ModelStats& m) { return m.attainment.answers == 14; });
  EXPECT_EQ(stats.attainment.answers, 14);
  EXPECT_EQ(stats.attainment.refused, 12);
  EXPECT_EQ(stats.attainment.first_late, 12);
  EXPECT_EQ(stats.attainment.attained, 2);
  EXPECT_EQ(stats.kv_blocks_used, 0);
}

// A request of which one choice was written is answered as a whole, however late the others are.
TEST(ServiceTerms, WhatHasBegunIsNotRefused) {
  struct : Clock {
    SteadyClock steady;
    std::atomic<int64_t> ahead_ns = 0;
    int64_t now_ns() const override { return steady.now_ns() + ahead_ns; }
  } clock;
  const auto model = small_model();
  auto engine = Engine::create({.threads = 2, .max_sequences = 1, .reject_hopeless = true}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  ASSERT_TRUE((*engine)->add_model(model));
  Request request = request_of(model, {.ttft_us = 60'000'000});
  request.n = 3;
  request.max_tokens = 100;
  Running running = start(**engine, request);
  ASSERT_TRUE(running.reader->wait_for_tokens(1));
  clock.ahead_ns = 100'000'000'000;
  // Before the other choices, so that they wait when the first has left.
  Request other = request_of(model);
  other.priority = -1;
  other.max_tokens = 100;
  std::vector<Running> others;
  for (int i = 0; i < 3; ++i) others.push_back(start(**engine, other));
  ASSERT_TRUE(running.reader->wait());
  for (int32_t c = 0; c < 3; ++c) expect_same(running.reader->choice(c), run_alone(request, c));
}

// Both have work until the heavy one's is done; what they got of the machine till then is as their weights.
TEST(ServiceTerms, ModelsShareTheDeviceByWeight) {
  const auto heavy = small_model("heavy", 1), light = small_model("light", 5);
  const TickingClock clock;  // the machine's other work is not the models'
  auto engine = Engine::create({.threads = 1}, nullptr, clock);
  ASSERT_TRUE(engine) << engine.error().message;
  ASSERT_TRUE((*engine)->add_model(heavy, {.weight = 4}));
  ASSERT_TRUE((*engine)->add_model(light));
  Request request = request_of(heavy);
  request.max_tokens = 200;
  Request other = request_of(light);
  other.max_tokens = 200;
  // First steps are slow, and say nothing of later ones.
  for (const Request& warm : {request, other}) {
    Running first = start(**engine, warm);
    ASSERT_TRUE(first.reader->wait());
  }
  Running slow = start(**engine, other), quick = start(**engine, request);
  ASSERT_TRUE(quick.reader->wait());
  const size_t meanwhile = slow.reader->tokens();
  EXPECT_LT(meanwhile, 110u) << "of 200; by weight it is 50";
  EXPECT_GT(meanwhile, 10u);
  ASSERT_TRUE(slow.reader->wait());
  expect_same(quick.reader->choice(), run_alone(request, 0));
  expect_same(slow.reader->choice(), run_alone(other, 0));
  const ModelStats stats = stats_when(**engine, 0, [](const ModelStats& m) { return m.running == 0; });
  EXPECT_EQ(stats.weight, 4);
  EXPECT_GT(stats.device_s, 0);
}

}  // namespace
}  // namespace hearth
