// SPDX-License-Identifier: Apache-2.0
// What sharing is compared with: a fixed part of the KV pool for each model. Nobody's text changes by it.
#include <gtest/gtest.h>

#include "hearth/engine/test_util.h"

namespace hearth {
namespace {

using namespace engine_test;

constexpr int64_t kBlockBytes = 16 * 2 * 2 * 2 * 16 * 4;  // of two layers: 16 tokens, K and V, 2 heads of 16, f32
constexpr int64_t kPart = 24;                             // blocks, of 96

class StaticParts : public testing::Test {
 protected:
  void SetUp() override {
    auto made = Engine::create(
        {.threads = 2, .max_sequences = 8, .step_tokens = 64, .kv_bytes = 96 * kBlockBytes, .kv_parts = 4}, nullptr,
        clock_);
    ASSERT_TRUE(made) << made.error().message;
    engine_ = std::move(*made);
    for (const auto& model : models_) ASSERT_TRUE(engine_->add_model(model));
  }

  const SteadyClock clock_;
  std::vector<std::shared_ptr<const ServedModel>> models_ = {small_model("a", 1), small_model("b", 2, cpu_ops(), 3),
                                                             small_model("c", 3), small_model("d", 4, cpu_ops(), 1)};
  std::unique_ptr<Engine> engine_;
};

TEST_F(StaticParts, NoModelHasMoreThanItsOwnWhileOthersAreIdle) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  EXPECT_EQ(engine_->kv_tokens(*models_[0]), kPart * 16);
  EXPECT_EQ(engine_->kv_tokens(*models_[3]), 2 * kPart * 16);
  Request request;
  request.model = models_[0];
  request.params.temperature = 1;
  std::vector<Running> all;
  // 8 times 7 blocks at once would fit into the pool, and do not into the part.
  for (int i = 0; i < 8; ++i) {
    request.prompt = random_prompt(random, 80);
    request.max_tokens = 30;
    all.push_back(start(*engine_, request));
  }
  int64_t most = 0;
  for (Running& one : all) {
    ASSERT_TRUE(one.reader->wait());
    for (const ModelStats& m : engine_->stats()) most = std::max(most, m.kv_blocks_used);
    expect_same(one.reader->choice(), run_alone(one.request, 0));
  }
  EXPECT_LE(most, kPart);
  const ModelStats stats = stats_when(*engine_, 0, [](const ModelStats& m) { return m.running == 0; });
  EXPECT_EQ(stats.kv_blocks, kPart);
  EXPECT_EQ(stats.kv.borrowed, 0);
}

TEST_F(StaticParts, EveryModelHasItsOwnWhateverOthersTake) {
  constexpr uint64_t kSeed = 8;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  std::vector<Running> all;
  for (int i = 0; i < 24; ++i) {
    Request request;
    request.model = models_[static_cast<size_t>(i % 4)];
    request.prompt = random_prompt(random, 1 + random.below(100));
    request.max_tokens = 1 + random.below(40);
    request.params.temperature = 1;
    all.push_back(start(*engine_, request));
  }
  for (Running& one : all) {
    ASSERT_TRUE(one.reader->wait());
    expect_same(one.reader->choice(), run_alone(one.request, 0));
  }
}

TEST_F(StaticParts, OneModelTooManyIsRefused) {
  const Status fifth = engine_->add_model(small_model("e", 5));
  ASSERT_FALSE(fifth);
  EXPECT_EQ(fifth.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(fifth.error().message.find("4 fixed parts"), std::string::npos) << fifth.error().message;
}

}  // namespace
}  // namespace hearth
