// SPDX-License-Identifier: Apache-2.0
// Recorded decode steps on a fake device with the CPU's ops, whose rows are their own bit for bit: padded and replayed
// steps must give exactly what the CPU gives without any of that.
#include "hearth/model/decode_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/memory/fake_device_for_test.h"
#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

using ::testing::ElementsAre;

const OpTable& fake_ops() {
  static const OpTable ops = [] {
    OpTable made = cpu_ops();
    made.memory = testing::fake_device;
    return made;
  }();
  return ops;
}

TEST(DecodeStep, BatchesAndContextsThatAreRecorded) {
  EXPECT_THAT(decode_batches(0), ElementsAre());
  EXPECT_THAT(decode_batches(1), ElementsAre(1));
  EXPECT_THAT(decode_batches(7), ElementsAre(1, 2, 4, 7));
  EXPECT_THAT(decode_batches(24), ElementsAre(1, 2, 4, 8, 16, 24));
  const std::vector<int64_t> many = decode_batches(400);
  EXPECT_EQ(many.size(), 3u + 8 + 12 + 2 + 1);
  EXPECT_THAT(std::vector(many.end() - 4, many.end()), ElementsAre(256, 320, 384, 400));
  EXPECT_THAT(decode_contexts(512), ElementsAre(512));
  EXPECT_THAT(decode_contexts(1024), ElementsAre(1024));
  EXPECT_THAT(decode_contexts(40000), ElementsAre(1024, 4096, 16384, 40000));
}

struct Pair {
  explicit Pair(const RunnerOptions& options)
      : plain(testing::make_runner(testing::load_model(kDir, pool), pool, options)),
        device(testing::make_runner(testing::load_model(kDir, pool, {}, fake_ops()), pool, options)) {}
  static constexpr const char* kDir = "tests/fixtures/llama_bias";

  // The same step on both; their logits must be the same bits.
  void expect_same(std::span<const SlotTokens> feeds) {
    const auto wanted = plain.step(feeds);
    ASSERT_TRUE(wanted) << wanted.error().message;
    const testing::Rows rows = testing::copy_rows(*wanted);
    const auto found = device.step(feeds);
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(testing::copy_rows(*found), rows);
  }
  ThreadPool pool{2};
  Runner plain, device;
};

// Contexts on both sides of 1024, so that two recordings of each number of sequences are there.
TEST(DecodeStep, ReplayedAndPaddedStepsGiveTheSameBits) {
  auto& counts = testing::FakeDevice::instance().counts;
  counts.reset();
  Pair pair({.max_sequences = 5,
             .max_context = 1100,
             .chunk_tokens = 80,
             .max_logit_rows = 8,
             .block_tokens = 5,
             .decode_batches = decode_batches(5)});
  EXPECT_EQ(counts.recorded, 8);  // 1, 2, 4, 5 sequences; contexts 1024, 1100
  std::vector<int32_t> ids(64);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7 % 90);
  const std::span<const int32_t> all(ids);
  const int64_t allocations = counts.allocations;
  // Prompts of different lengths, together: no decode step.
  std::vector<SlotTokens> prompts;
  for (int64_t slot = 0; slot < 5; ++slot)
    prompts.push_back({slot, all.subspan(static_cast<size_t>(slot), static_cast<size_t>(4 + 5 * slot))});
  pair.expect_same(prompts);
  EXPECT_EQ(counts.replayed, 0);
  int64_t replayed = 0;
  for (int64_t count : {5, 1, 3, 2, 4, 5}) {
    std::vector<SlotTokens> feeds;
    for (int64_t i = 0; i < count; ++i) feeds.push_back({(i * 3 + count) % 5, all.subspan(static_cast<size_t>(i), 1)});
    pair.expect_same(feeds);
    EXPECT_EQ(counts.replayed, ++replayed) << count;
  }
  // One token beside a prompt: mixed.
  const SlotTokens mixed[] = {{1, all.first(1)}, {0, all.first(9)}};
  pair.expect_same(mixed);
  EXPECT_EQ(counts.replayed, replayed);
  for (int i = 0; i < 16; ++i) {
    const SlotTokens feed{4, all};
    pair.expect_same({&feed, 1});
  }
  ASSERT_GT(pair.device.context(4), 1024);
  const SlotTokens feeds[] = {{4, all.first(1)}, {2, all.subspan(3, 1)}, {0, all.subspan(9, 1)}};
  pair.expect_same(feeds);
  EXPECT_EQ(counts.replayed, replayed + 1);
  EXPECT_EQ(counts.allocations, allocations) << "a step allocated";
}

TEST(DecodeStep, WrongTokensAreRefusedBeforeTheReplay) {
  Pair pair({.max_sequences = 2,
             .max_context = 32,
             .chunk_tokens = 8,
             .max_logit_rows = 2,
             .decode_batches = decode_batches(2)});
  for (const int32_t token : {-1, static_cast<int32_t>(pair.device.model().config().vocab_size)}) {
    const SlotTokens feed{0, {&token, 1}};
    const auto found = pair.device.step({&feed, 1});
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(pair.device.context(0), 0);
  }
  const int32_t token = 3;
  const SlotTokens feed{1, {&token, 1}};
  pair.expect_same({&feed, 1});
}

TEST(DecodeStep, WithoutRecordingsNothingIsPadded) {
  auto& counts = testing::FakeDevice::instance().counts;
  counts.reset();
  Pair pair({.max_sequences = 3, .max_context = 32, .chunk_tokens = 8, .max_logit_rows = 3, .decode_batches = {}});
  const int32_t token = 3;
  const SlotTokens feed{1, {&token, 1}};
  pair.expect_same({&feed, 1});
  EXPECT_EQ(counts.recorded + counts.replayed, 0);
}

TEST(DecodeStep, AContextIsCopiedWithItsKeysAndValues) {
  Pair pair({.max_sequences = 3,
             .max_context = 64,
             .chunk_tokens = 32,
             .max_logit_rows = 3,
             .block_tokens = 5,
             .decode_batches = {}});
  std::vector<int32_t> ids(23, 5);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const SlotTokens prompt{1, ids};
  pair.expect_same({&prompt, 1});
  ASSERT_TRUE(pair.device.copy_context(1, 2));
  EXPECT_EQ(pair.device.context(2), 23);
  const int32_t token = 9;
  const SlotTokens on_copy{2, {&token, 1}}, on_original{1, {&token, 1}};
  const auto wanted = pair.plain.step({&on_original, 1});
  const auto found = pair.device.step({&on_copy, 1});
  ASSERT_TRUE(wanted && found);
  EXPECT_EQ(testing::copy_rows(*found), testing::copy_rows(*wanted));
}

}  // namespace
}  // namespace hearth
