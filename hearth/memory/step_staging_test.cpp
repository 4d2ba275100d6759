// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/step_staging.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace hearth {
namespace {

// With host memory on both sides, the device's copy can be read.
TEST(StepStaging, EveryArrayLiesAtTheSameDistanceOnBothSides) {
  auto staging = StepStaging::create(host_memory(), {.tokens = 5, .sequences = 2, .logit_rows = 2, .block_entries = 6});
  ASSERT_TRUE(staging) << staging.error().message;
  auto queue = *host_memory().create_queue();
  const std::vector<int32_t> tokens{7, 8, 9, 10, 11}, positions{0, 1, 2, 5, 6}, starts{0, 3, 5}, context{3, 7},
      rows{2, 4};
  const std::vector<int64_t> blocks{0, 64, 128, int64_t{1} << 40, 5, 6};
  const StepBatch batch{.tokens = tokens,
                        .positions = positions,
                        .query_start = starts,
                        .context_len = context,
                        .block_table = blocks,
                        .block_table_stride = 3,
                        .logit_rows = rows};
  for (int round = 0; round < 2; ++round) {  // I1
    const auto staged = staging->stage(batch, *queue);
    ASSERT_TRUE(staged) << staged.error().message;
    const StagedMemory memory = staging->memory();
    const auto expect_there = [&](auto found, const auto& wanted) {
      EXPECT_TRUE(std::ranges::equal(found, wanted));
      const auto* host = reinterpret_cast<const std::byte*>(found.data());
      ASSERT_GE(host, memory.host);
      ASSERT_LE(host + found.size_bytes(), memory.host + memory.size_bytes);
      const auto* device =
          static_cast<decltype(found.data())>(static_cast<const void*>(memory.device + (host - memory.host)));
      EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), device));
    };
    expect_there(staged->tokens, tokens);
    expect_there(staged->positions, positions);
    expect_there(staged->query_start, starts);
    expect_there(staged->context_len, context);
    expect_there(staged->block_table, blocks);
    expect_there(staged->logit_rows, rows);
    EXPECT_EQ(staged->block_table_stride, 3);
    EXPECT_TRUE(staged->adapter.empty());
    // I2, also after an op that failed in between.
    EXPECT_TRUE(
        std::all_of(memory.counters, memory.counters + StagedMemory::kCounters, [](uint32_t c) { return c == 0; }));
    std::fill_n(memory.counters, StagedMemory::kCounters, 7u);
  }
}

// Arrays of a padded step: real sequences first, then token 0 at position 0 of the dummy block; always in the same
// places.
TEST(StepStaging, ADecodeStepIsPaddedToItsShape) {
  auto staging =
      StepStaging::create(host_memory(), {.tokens = 4, .sequences = 4, .logit_rows = 4, .block_entries = 12});
  ASSERT_TRUE(staging) << staging.error().message;
  auto queue = *host_memory().create_queue();
  const PaddedShape shape{.sequences = 4, .max_context = 30, .block_stride = 3, .dummy_block = 777};
  const auto values = [](auto span) { return std::vector(span.begin(), span.end()); };
  const int32_t* place = nullptr;
  // The batch's own stride is shorter than the shape's, then longer.
  for (const int64_t stride : {2, 5}) {
    const std::vector<int32_t> tokens{7, 8}, positions{3, 11}, starts{0, 1, 2}, context{4, 12}, rows{0, 1};
    std::vector<int64_t> blocks(static_cast<size_t>(2 * stride), 999);
    blocks[0] = 64, blocks[1] = 128, blocks[static_cast<size_t>(stride)] = 192;
    blocks[static_cast<size_t>(stride + 1)] = 256;
    const auto staged = staging->stage_padded({.tokens = tokens,
                                               .positions = positions,
                                               .query_start = starts,
                                               .context_len = context,
                                               .block_table = blocks,
                                               .block_table_stride = stride,
                                               .logit_rows = rows},
                                              shape, *queue);
    ASSERT_TRUE(staged) << staged.error().message;
    EXPECT_EQ(values(staged->tokens), (std::vector<int32_t>{7, 8, 0, 0}));
    EXPECT_EQ(values(staged->positions), (std::vector<int32_t>{3, 11, 0, 0}));
    EXPECT_EQ(values(staged->query_start), (std::vector<int32_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(values(staged->context_len), (std::vector<int32_t>{4, 12, 1, 1}));
    EXPECT_EQ(values(staged->logit_rows), (std::vector<int32_t>{0, 1, 2, 3}));
    const int64_t third = stride == 2 ? 777 : 999;
    EXPECT_EQ(values(staged->block_table),
              (std::vector<int64_t>{64, 128, third, 192, 256, third, 777, 777, 777, 777, 777, 777}));
    EXPECT_EQ(staged->block_table_stride, 3);
    EXPECT_EQ(staged->planned_context(), 30);
    const StagedMemory memory = staging->memory();
    const auto* const device =
        memory.device + (reinterpret_cast<const std::byte*>(staged->tokens.data()) - memory.host);
    EXPECT_TRUE(std::equal(staged->tokens.begin(), staged->tokens.end(),
                           static_cast<const int32_t*>(static_cast<const void*>(device))));
    if (place != nullptr) {
      EXPECT_EQ(staged->logit_rows.data(), place);
    }
    place = staged->logit_rows.data();
  }
  EXPECT_FALSE(staging->stage_padded({}, {.sequences = 5, .block_stride = 1}, *queue));
}

TEST(StepStaging, ABatchLargerThanPlannedIsRefused) {
  auto staging = StepStaging::create(host_memory(), {.tokens = 1, .sequences = 1, .logit_rows = 1, .block_entries = 1});
  ASSERT_TRUE(staging);
  auto queue = *host_memory().create_queue();
  const std::vector<int32_t> two{1, 2}, starts{0, 2}, context{2};
  const std::vector<int64_t> blocks{0};
  const StepBatch batch{
      .tokens = two, .positions = two, .query_start = starts, .context_len = context, .block_table = blocks};
  const auto staged = staging->stage(batch, *queue);
  ASSERT_FALSE(staged);
  EXPECT_EQ(staged.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(staged.error().message,
            "step of 2 tokens of 1 sequences with 0 logit rows and 1 blocks; planned for 1, 1, 1 and 1");
}

}  // namespace
}  // namespace hearth
