// SPDX-License-Identifier: Apache-2.0
// attention_sm90 on a GPU. Label gpu: without a device every test here that runs the op fails.
#include "hearth/kernels/attention/attention_sm90.h"

#include <gtest/gtest.h>

#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/attention/attention_coded_sm90.h"
#include "hearth/kernels/attention/attention_exact_test.h"
#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/some_cases_for_test.h"

namespace hearth {
namespace {

bool kernel_has(const AttentionCase& c) { return c.head_dim % 8 == 0; }

// Whether few rows may be split into chunks: with scratch they are.
enum class Scratch { kNone, kSplit };

Status run_sm90(AttentionRun& run, const StepBatch& batch, int64_t first_row, TestTensor& out, Scratch scratch) {
  const int64_t bytes = scratch == Scratch::kSplit ? attention_sm90_workspace_bytes(batch.num_tokens(), run.c.heads,
                                                                                    run.c.head_dim, longest(run.c), 1)
                                                   : 0;
  GpuExec gpu(batch, bytes);
  OnDevice q(run.q), device_out(out);
  OnDevice channel_scale(run.channel_scale), k_scale(run.k_scale), v_scale(run.v_scale);
  DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
  AttentionArgs args = run.args(out);
  args.q = q.view().slice_rows(first_row, batch.num_tokens());
  args.out = device_out.view().slice_rows(first_row, batch.num_tokens());
  args.k_channel_scale = channel_scale.view(), args.k_scale = k_scale.vector(), args.v_scale = v_scale.vector();
  args.kv.base = pool.data();
  args.batch = &gpu.batch();
  HEARTH_TRY(attention_sm90(args, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

std::vector<AttentionCase> gpu_cases() {
  std::vector<AttentionCase> all = attention_cases();
  for (int64_t head_dim : {64, 128})
    for (int64_t group : {1, 3, 4, 7, 8})
      all.push_back({DType::kBf16, KvFormatId::kBf16, 2 * group, 2, head_dim, 16, 0, {{0, 130}, {511, 1}, {1000, 2}}});
  // Prompts that are cut into tiles of 16, 5 and 2 tokens.
  for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4Saw})
    for (int64_t head_dim : {64, 128})
      all.push_back({DType::kF32, format, 8, 8, head_dim, 16, 0, {{0, 300}, {200, 1}, {64, 210}}});
  all.push_back({DType::kBf16, KvFormatId::kBf16, 24, 8, 80, 16, 0, {{0, 160}, {200, 20}}});
  all.push_back({DType::kF32, KvFormatId::kInt4Fireq, 64, 8, 256, 16, 70, {{0, 70}, {30, 3}}});
  for (KvFormatId format : kCodedFormats) {
    for (int64_t head_dim : {64, 128})
      for (int64_t group : {1, 3, 8})
        for (DType dtype : {DType::kF32, DType::kBf16})
          all.push_back({dtype, format, 2 * group, 2, head_dim, 16, 0, {{0, 130}, {511, 1}, {1000, 2}}});
    // Contexts that end at, before and after a block of 16 and a chunk of 128.
    for (int64_t context : {15, 16, 17, 127, 128, 129, 255, 256, 257})
      all.push_back({.format = format, .sequences = {{context - 1, 1}, {0, context}}});
    // Rows that are no whole vectors of 16 bytes, and heads wider than 128.
    for (int64_t head_dim : {8, 24, 80, 256})
      if (stores(format, head_dim))
        all.push_back({.format = format, .head_dim = head_dim, .block_tokens = 5, .sequences = {{0, 20}, {190, 2}}});
  }
  return all;
}

TEST(AttentionSm90, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20305;
  int ran = 0;
  for (const AttentionCase& c : gpu_cases()) {
    if (!kernel_has(c) || leave_out_case()) continue;
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
    AttentionRun run(c, kSeed);
    const TestTensor wanted = run.reference(), naive = run.naive();
    TestTensor split = run.empty_out(), whole = run.empty_out();
    const Status status = run_sm90(run, run.step.batch(), 0, split, Scratch::kSplit);
    ASSERT_TRUE(status) << status.error().message;
    // Tensor cores take weights in bf16.
    if (sm90::takes_attention_bf16(run.args(split)) || sm90::takes_attention_coded(run.args(split))) {
      expect_exact(run, run.step.batch(), split, 1);
    } else {
      expect_as_exact_as(naive, split, wanted);
    }
    ASSERT_TRUE(run_sm90(run, run.step.batch(), 0, whole, Scratch::kNone));
    EXPECT_TRUE(whole.same_bits(split)) << "I1: with and without a split";
    ++ran;
  }
  EXPECT_GE(ran, 180 / one_case_in());
}

// I1: alone, chunked, batched; in tiles and not.
TEST(AttentionSm90, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 20306;
  constexpr int64_t kPart = 7;
  ASSERT_TRUE(sm90::use_attention_tiles(sm90::attention_tile_tokens(3), 724, 4, 2, multiprocessors()));
  ASSERT_FALSE(sm90::use_attention_tiles(sm90::attention_tile_tokens(3), kPart, 1, 2, multiprocessors()));
  for (int64_t window : {0, 100})
    for (DType dtype : {DType::kF32, DType::kBf16})
      for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4,
                                KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw}) {
        const AttentionCase c{
            dtype, format, 6, 2, window > 0 ? 64 : 128, 16, window, {{0, 520}, {131, 3}, {300, 200}, {411, 1}}};
        if (leave_out_case()) continue;
        SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
        AttentionRun run(c, kSeed);
        TestTensor all = run.empty_out(), chunked = run.empty_out();
        ASSERT_TRUE(run_sm90(run, run.step.batch(), 0, all, Scratch::kNone));
        for (int64_t s = 0; s < 4; ++s)
          for (int64_t begin = 0; begin < c.sequences[s].queries; begin += kPart) {
            const int64_t end = std::min<int64_t>(begin + kPart, c.sequences[s].queries);
            ASSERT_TRUE(run_sm90(run, run.step.part(s, begin, end), run.step.batch().query_start[s] + begin, chunked,
                                 Scratch::kSplit));
          }
        EXPECT_TRUE(all.same_bits(chunked));
      }
}

TEST(AttentionSm90, LargeScoresDoNotOverflow) {
  constexpr uint64_t kSeed = 20307;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  AttentionRun run({.sequences = {{0, 200}}}, kSeed);
  run.q.fill(run.random, 2000);
  const TestTensor wanted = run.reference();
  TestTensor out = run.empty_out();
  ASSERT_TRUE(run_sm90(run, run.step.batch(), 0, out, Scratch::kSplit));
  // A difference of scores near 5000 is known to 5000 * 2^-24 or so, hence so is a weight.
  EXPECT_LE(max_error(out, wanted), 2e-2);
}

TEST(AttentionSm90, WhatTheKernelLacksIsUnsupported) {
  for (const AttentionCase& c :
       {AttentionCase{.head_dim = 20, .sequences = {{0, 1}}}, AttentionCase{.head_dim = 264, .sequences = {{0, 1}}},
        AttentionCase{.format = KvFormatId::kFp8, .head_dim = 20, .sequences = {{0, 1}}}}) {
    AttentionRun run(c, 1);
    ExecContext exec;
    const Status status = attention_sm90(run.args(run.empty_out()), exec);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kUnsupported) << status.error().message;
  }
}

}  // namespace
}  // namespace hearth
