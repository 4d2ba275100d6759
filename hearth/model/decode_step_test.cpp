// SPDX-License-Identifier: Apache-2.0
// Recorded decode steps on a fake device with the CPU's ops, whose rows are their own bit for bit: padded and replayed
// steps must give exactly what the CPU gives without any of that.
#include "hearth/model/decode_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

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

// Ids of greedy decoding in a few slots, each step waited for or put behind the one before; recorded or not.
std::vector<std::vector<int32_t>> greedy_ids(Runner& runner, bool behind, int64_t steps) {
  const int32_t prompt[] = {5, 17, 3, 60, 22};
  std::vector<SlotTokens> feeds;
  for (int64_t slot = 0; slot < 3; ++slot)
    feeds.push_back({slot, std::span(prompt).first(static_cast<size_t>(2 + slot))});
  const std::vector<SampleRow> rows(3, {.params = {.temperature = 0}, .top_logprobs = kNoLogprobs});
  std::array<std::vector<SampleResult>, 2> results;
  results.fill(std::vector<SampleResult>(3));
  std::vector<std::vector<int32_t>> ids;
  const auto keep = [&](int64_t step) {
    EXPECT_TRUE(runner.finish());
    auto& found = ids.emplace_back();
    for (const SampleResult& result : results[static_cast<size_t>(step % 2)]) found.push_back(result.token);
  };
  EXPECT_TRUE(runner.start(feeds, rows, results[0]));
  for (int64_t step = 1; step < steps; ++step) {
    EXPECT_TRUE(!behind || runner.can_follow(rows));
    if (!behind) keep(step - 1);
    std::vector<int32_t> tokens = {-1, -2, -3};
    if (!behind) tokens = ids.back();
    // In another order than the rows, so that names are not places.
    const size_t order[] = {2, 0, 1};
    for (size_t i = 0; i < 3; ++i) feeds[i] = {feeds[i].slot, {&tokens[i], 1}};
    std::vector<SlotTokens> turned;
    for (const size_t i : order) turned.push_back(feeds[i]);
    feeds = turned;
    EXPECT_TRUE(runner.start(feeds, rows, results[static_cast<size_t>(step % 2)]));
    if (behind) keep(step - 1);
  }
  keep(steps - 1);
  return ids;
}

TEST(DecodeStep, AStepBehindTheOneThatRunsHasItsIds) {
  OpTable ops = fake_ops();
  ops.sample_packed = sample_packed_ref;
  ThreadPool pool{2};
  for (const bool recorded : {false, true}) {
    RunnerOptions options{.max_sequences = 3, .max_context = 64, .max_logit_rows = 3, .samples = true};
    if (recorded) options.decode_batches = {3};
    std::vector<std::vector<int32_t>> wanted;
    for (const bool behind : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "recorded " << recorded << ", behind " << behind);
      Runner runner =
          testing::make_runner(testing::load_model("tests/fixtures/llama_bias", pool, {}, ops), pool, options);
      const auto ids = greedy_ids(runner, behind, 9);
      EXPECT_EQ(ids.size(), 9u);
      if (behind) {
        EXPECT_EQ(ids, wanted);
      }
      wanted = ids;
      // A name of a row that there is not, and a name where no step runs.
      const int32_t none = -5, first = -1;
      const SampleRow row{.params = {.temperature = 0}, .top_logprobs = kNoLogprobs};
      SampleResult result;
      const SlotTokens bad{0, {&none, 1}}, early{0, {&first, 1}};
      EXPECT_FALSE(runner.step({&early, 1}));
      EXPECT_FALSE(runner.start({&bad, 1}, {&row, 1}, {&result, 1}));
    }
  }
}

TEST(DecodeStep, FollowsOnlyWhereNoHistoryIsRead) {
  OpTable ops = fake_ops();
  ops.sample_packed = sample_packed_ref;
  ThreadPool pool{2};
  Runner runner = testing::make_runner(testing::load_model("tests/fixtures/llama_bias", pool, {}, ops), pool,
                                       {.max_sequences = 1, .max_context = 64, .max_logit_rows = 1, .samples = true});
  SampleRow row{.params = {.temperature = 0}, .top_logprobs = kNoLogprobs};
  SampleRow penalised = row;
  penalised.params.repetition_penalty = 1.2f;
  const int32_t token = 7;
  const SlotTokens feed{0, {&token, 1}};
  SampleResult result;
  EXPECT_TRUE(runner.can_follow({&penalised, 1})) << "nothing is under way";
  ASSERT_TRUE(runner.start({&feed, 1}, {&row, 1}, {&result, 1}));
  EXPECT_TRUE(runner.can_follow({&row, 1}));
  EXPECT_FALSE(runner.can_follow({&penalised, 1}));
  ASSERT_TRUE(runner.finish());
  EXPECT_EQ(result.outcome, SampleOutcome::kOk);
  // On the host all is done at once.
  Runner host = testing::make_runner(testing::load_model("tests/fixtures/llama_bias", pool), pool,
                                     {.max_sequences = 1, .max_context = 64, .max_logit_rows = 1});
  ASSERT_TRUE(host.start({&feed, 1}, {&row, 1}, {&result, 1}));
  EXPECT_FALSE(host.can_follow({&row, 1}));
  ASSERT_TRUE(host.finish());
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
