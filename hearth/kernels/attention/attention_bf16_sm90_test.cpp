// SPDX-License-Identifier: Apache-2.0
// attention_bf16_sm90 on a GPU, against a loop in double. Label gpu: without a device every test that runs the op
// fails.
#include "hearth/kernels/attention/attention_bf16_sm90.h"

#include <gtest/gtest.h>

#include "hearth/kernels/attention/attention_exact_test.h"
#include "hearth/kernels/gpu_test.h"

namespace hearth {
namespace {

AttentionCase make_case(int64_t group, int64_t kv_heads, int64_t head_dim, int64_t block_tokens, int64_t window,
                        std::vector<TestStep::Sequence> sequences) {
  return {DType::kBf16, KvFormatId::kBf16, group * kv_heads, kv_heads,
          head_dim,     block_tokens,      window,           std::move(sequences)};
}

enum class Scratch { kNone, kSplit };

Status run_bf16(AttentionRun& run, const StepBatch& batch, int64_t first_row, TestTensor& out, Scratch scratch) {
  const int64_t bytes = scratch == Scratch::kSplit ? attention_sm90_workspace_bytes(batch.num_tokens(), run.c.heads,
                                                                                    run.c.head_dim, longest(run.c), 1)
                                                   : 0;
  GpuExec gpu(batch, bytes);
  OnDevice q(run.q), device_out(out);
  DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
  AttentionArgs args = run.args(out);
  args.q = q.view().slice_rows(first_row, batch.num_tokens());
  args.out = device_out.view().slice_rows(first_row, batch.num_tokens());
  args.kv.base = pool.data();
  args.batch = &gpu.batch();
  HEARTH_TRY(attention_bf16_sm90(args, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

void check(const AttentionCase& c, uint64_t seed, int64_t stride = 1) {
  SCOPED_TRACE(::testing::Message() << "seed " << seed << ", " << describe(c));
  AttentionRun run(c, seed);
  TestTensor split = run.empty_out(), whole = run.empty_out();
  ASSERT_TRUE(sm90::takes_attention_bf16(run.args(split)));
  const Status status = run_bf16(run, run.step.batch(), 0, split, Scratch::kSplit);
  ASSERT_TRUE(status) << status.error().message;
  expect_exact(run, run.step.batch(), split, stride);
  ASSERT_TRUE(run_bf16(run, run.step.batch(), 0, whole, Scratch::kNone));
  EXPECT_TRUE(whole.same_bits(split)) << "I1: with and without a split";
}

TEST(AttentionBf16Sm90, DecodeOfOneSequence) {
  for (int64_t context : {1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 513, 1000})
    for (int64_t head_dim : {64, 128}) check(make_case(4, 2, head_dim, 16, 0, {{context - 1, 1}}), 31001);
}

TEST(AttentionBf16Sm90, DecodeOfGroupsBlocksAndWindows) {
  const std::vector<TestStep::Sequence> batch = {{0, 1}, {299, 1}, {700, 1}, {64, 1}, {255, 1}};
  for (int64_t head_dim : {64, 128}) {
    for (int64_t group : {1, 2, 3, 5, 7, 8}) check(make_case(group, 2, head_dim, 16, 0, batch), 31002);
    for (int64_t block_tokens : {8, 32, 64, 128, 256}) check(make_case(3, 1, head_dim, block_tokens, 0, batch), 31003);
    for (int64_t window : {1, 2, 33, 64, 255, 256, 300}) check(make_case(4, 1, head_dim, 16, window, batch), 31004);
  }
}

TEST(AttentionBf16Sm90, DecodeOfLongContexts) {
  check(make_case(4, 8, 128, 16, 0, {{4095, 1}, {1, 1}, {2999, 1}}), 31005);
  check(make_case(7, 4, 128, 16, 0, {{4096, 1}}), 31005);
}

TEST(AttentionBf16Sm90, PrefillOfOneSequence) {
  for (int64_t length : {2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 400})
    for (int64_t head_dim : {64, 128}) check(make_case(1, 2, head_dim, 16, 0, {{0, length}}), 31006);
}

TEST(AttentionBf16Sm90, PrefillOfGroupsBlocksAndWindows) {
  const std::vector<TestStep::Sequence> batch = {{0, 130}, {300, 37}, {0, 2}, {127, 129}};
  for (int64_t head_dim : {64, 128}) {
    for (int64_t group : {2, 3, 4, 7, 8}) check(make_case(group, 2, head_dim, 16, 0, batch), 31007, 5);
    for (int64_t block_tokens : {8, 32, 64, 128, 256})
      check(make_case(3, 1, head_dim, block_tokens, 0, batch), 31008, 3);
    for (int64_t window : {1, 2, 33, 127, 128, 129, 300}) check(make_case(4, 1, head_dim, 16, window, batch), 31009, 3);
  }
}

TEST(AttentionBf16Sm90, LongPrompt) { check(make_case(2, 1, 128, 16, 0, {{0, 4096}}), 31010, 61); }

TEST(AttentionBf16Sm90, MixedSteps) {
  for (int64_t head_dim : {64, 128})
    check(make_case(4, 2, head_dim, 16, 0, {{0, 5}, {17, 1}, {0, 0}, {260, 3}, {64, 70}, {999, 1}}), 31011);
}

// I3: alone, in pieces of several tokens, and in a batch.
TEST(AttentionBf16Sm90, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 31012;
  for (int64_t window : {0, 100})
    for (int64_t piece : {61, 128}) {
      const AttentionCase c = make_case(3, 2, window > 0 ? 64 : 128, 16, window, {{0, 520}, {131, 3}, {300, 1}});
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c) << ", pieces of " << piece);
      AttentionRun run(c, kSeed);
      TestTensor all = run.empty_out(), chunked = run.empty_out();
      ASSERT_TRUE(run_bf16(run, run.step.batch(), 0, all, Scratch::kNone));
      for (int64_t s = 0; s < 3; ++s)
        for (int64_t begin = 0; begin < c.sequences[s].queries; begin += piece) {
          const int64_t end = std::min<int64_t>(begin + piece, c.sequences[s].queries);
          ASSERT_TRUE(run_bf16(run, run.step.part(s, begin, end), run.step.batch().query_start[s] + begin, chunked,
                               Scratch::kSplit));
        }
      for (int64_t t = 0; t < all.rows(); ++t) ASSERT_TRUE(all.same_row_bits(t, chunked, t)) << "first at token " << t;
    }
}

TEST(AttentionBf16Sm90, LargeScoresDoNotOverflow) {
  constexpr uint64_t kSeed = 31013;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  for (const TestStep::Sequence& sequence : {TestStep::Sequence{0, 200}, TestStep::Sequence{600, 1}}) {
    AttentionRun run(make_case(4, 2, 128, 16, 0, {sequence}), kSeed);
    run.q.fill(run.random, 2000);
    const TestTensor wanted = run.reference();
    TestTensor out = run.empty_out();
    ASSERT_TRUE(run_bf16(run, run.step.batch(), 0, out, Scratch::kSplit));
    // A difference of scores near 5000 is known to 5000 * 2^-24 or so, hence so is a weight; then bf16.
    EXPECT_LE(max_error(out, wanted), 5e-2);
  }
}

// A graph is captured for one step and replayed for others of the same shape: shorter, longer, of one chunk and
// several.
TEST(AttentionBf16Sm90, AReplayedGraphTakesTheLengthsOfTheStep) {
  constexpr uint64_t kSeed = 31014;
  for (int64_t head_dim : {64, 128}) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", head dim " << head_dim);
    AttentionRun run(make_case(4, 2, head_dim, 16, 0, {{1299, 1}, {299, 1}, {0, 1}, {700, 1}, {512, 1}}), kSeed);
    const StepBatch& full = run.step.batch();
    TestTensor out = run.empty_out();
    OnDevice q(run.q), device_out(out);
    DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
    const auto queue = *cuda_memory().create_queue();
    auto stream = Stream::create();
    ASSERT_TRUE(stream) << stream.error().message;
    auto staging = *StepStaging::create(cuda_memory(), {.tokens = full.num_tokens(),
                                                        .sequences = full.num_sequences(),
                                                        .logit_rows = std::ssize(full.logit_rows),
                                                        .block_entries = std::ssize(full.block_table)});
    const int64_t workspace_bytes = attention_sm90_workspace_bytes(full.num_tokens(), run.c.heads, head_dim, 1300, 1);
    const DeviceBuffer workspace = *DeviceBuffer::allocate(workspace_bytes);
    std::optional<Graph> graph;
    for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{1, 1, 1, 1, 1},
                                                {1300, 300, 1, 701, 513},
                                                {5, 256, 1, 257, 512},
                                                {1024, 17, 1, 64, 128},
                                                {1300, 1, 1, 1, 1}}) {
      std::vector<int32_t> positions;
      for (int32_t length : lengths) positions.push_back(length - 1);
      StepBatch batch = full;
      batch.context_len = lengths, batch.positions = positions, batch.max_context = 1300;
      const auto staged = staging.stage(batch, *queue);
      ASSERT_TRUE(staged) << staged.error().message;
      ASSERT_TRUE(queue->synchronize());
      if (!graph) {
        ExecContext exec{.stream = stream->handle(),
                         .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)},
                         .staged = staging.memory()};
        AttentionArgs args = run.args(out);
        args.q = q.view(), args.out = device_out.view(), args.kv.base = pool.data(), args.batch = &*staged;
        auto captured = Graph::capture(*stream, [&] { return attention_bf16_sm90(args, exec); });
        ASSERT_TRUE(captured) << captured.error().message;
        graph = *std::move(captured);
      }
      ASSERT_TRUE(graph->launch(*stream));
      ASSERT_TRUE(stream->synchronize());
      device_out.copy_back();
      SCOPED_TRACE(::testing::Message() << "first length " << lengths[0] << ", second " << lengths[1]);
      expect_exact(run, batch, out, 1);
    }
  }
}

// More tiles than blocks: each takes several, of long and short sequences, and the counter is zero again for the next.
TEST(AttentionBf16Sm90, PrefillOfMoreTilesThanBlocks) {
  for (int64_t head_dim : {64, 128}) {
    check(make_case(1, 32, head_dim, 16, 0, {{0, 700}, {0, 1}, {130, 300}, {0, 129}, {5, 2}, {0, 600}}), 31015, 37);
    check(make_case(4, 8, head_dim, 64, 200, {{0, 500}, {0, 90}, {300, 333}}), 31016, 29);
  }
}

// What it does not take is another kernel's.
TEST(AttentionBf16Sm90, TakesOnlyWhatItHas) {
  const std::vector<TestStep::Sequence> one = {{0, 1}};
  AttentionCase f32_kv = make_case(4, 2, 128, 16, 0, one), f32 = f32_kv;
  f32_kv.format = KvFormatId::kF32;
  f32.dtype = DType::kF32;
  for (const AttentionCase& c : {f32_kv, f32, make_case(4, 2, 80, 16, 0, one), make_case(9, 2, 128, 16, 0, one),
                                 make_case(4, 2, 128, 12, 0, one), make_case(4, 2, 128, 4, 0, one)}) {
    AttentionRun run(c, 1);
    const TestTensor out = run.empty_out();
    EXPECT_FALSE(sm90::takes_attention_bf16(run.args(out))) << describe(c);
    ExecContext exec;
    const Status status = attention_bf16_sm90(run.args(out), exec);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kUnsupported) << status.error().message;
  }
}

}  // namespace
}  // namespace hearth
