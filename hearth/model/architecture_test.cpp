// SPDX-License-Identifier: Apache-2.0
// Every architecture against Hugging Face transformers: tiny random checkpoints with golden logits
// (tests/fixtures). The tolerance is the project's promise for float32.
#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

constexpr double kTolerance = 1e-4;

class Fixture : public ::testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path dir() const { return std::filesystem::path("tests/fixtures") / GetParam(); }
};

TEST_P(Fixture, MatchesTransformersInFloat32) {
  const auto golden = testing::read_golden(dir());
  for (const OpTable* ops : {&cpu_ops(), &ref_ops()}) {
    SCOPED_TRACE(ops->backend);
    ThreadPool pool(2);
    Runner runner =
        testing::make_runner(testing::load_model(dir(), pool, {}, *ops), pool,
                             {.max_context = 72, .chunk_tokens = 48, .max_logit_rows = 48, .block_tokens = 5});
    testing::expect_golden(runner, golden, kTolerance, 48);
    testing::expect_golden(runner, golden, kTolerance, 7);
  }
}

// Alone in one step, token by token, in chunks, and beside other sequences: the same bits.
TEST_P(Fixture, ChunkedBatchedAndAloneAgreeBitForBit) {
  for (const DType activation : {DType::kF32, DType::kBf16}) {
    SCOPED_TRACE(dtype_name(activation));
    ThreadPool pool(3), single(1);
    const auto model = testing::load_model(dir(), pool, {.activation = activation});
    const RunnerOptions options{.max_sequences = 3,
                                .max_context = 64,
                                .chunk_tokens = 160,
                                .max_logit_rows = 160,
                                .block_tokens = 4,
                                .kv_format = activation == DType::kF32 ? KvFormatId::kF32 : KvFormatId::kBf16};
    const std::vector<int32_t> ids = testing::read_golden(dir()).back().ids;
    Runner alone = testing::make_runner(model, single, options);
    const testing::Rows wanted = testing::all_logits(alone, 0, ids, ids.size());

    Runner runner = testing::make_runner(model, pool, options);
    EXPECT_EQ(testing::all_logits(runner, 0, ids, 1), wanted);
    runner.cut(0, 0);
    EXPECT_EQ(testing::all_logits(runner, 0, ids, 9), wanted);
    runner.cut(0, 0);

    // Slot 1 decodes the sequence's end while slot 0 prefills all of it and slot 2 a part.
    const std::span all(ids);
    ASSERT_TRUE(runner.feed(1, all.first(ids.size() - 1)));
    const SlotTokens feeds[] = {{2, all.first(11), true}, {1, all.last(1), true}, {0, all, true}};
    const auto logits = runner.step(feeds);
    ASSERT_TRUE(logits) << logits.error().message;
    const testing::Rows rows = testing::copy_rows(*logits);
    ASSERT_EQ(rows.size(), 12 + ids.size());
    for (size_t i = 0; i < 11; ++i) EXPECT_EQ(rows[i], wanted[i]);
    EXPECT_EQ(rows[11], wanted.back());
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(rows[12 + i], wanted[i]);
  }
}

TEST(InstructionSets, EachMatchesTransformersInFloat32) {
  for (const char* fixture : {"llama31", "qwen3_swa"}) {
    const std::filesystem::path dir = std::filesystem::path("tests/fixtures") / fixture;
    const auto golden = testing::read_golden(dir);
    ThreadPool pool(2);
    const auto model = testing::load_model(dir, pool);
    for_each_cpu_target([&] {
      Runner runner = testing::make_runner(model, pool, {.max_context = 72, .chunk_tokens = 48, .max_logit_rows = 48});
      testing::expect_golden(runner, golden, kTolerance, 48);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, Fixture,
                         ::testing::Values("llama2", "llama3", "llama31", "llama32", "llama_bias", "llama_linear_rope",
                                           "llama_sharded", "llama_yarn", "mistral", "mistral_swa", "qwen2", "qwen25",
                                           "qwen2_swa", "qwen2_yarn", "qwen3", "qwen3_swa"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace hearth
