// SPDX-License-Identifier: Apache-2.0
// attention_sm90 over KV in FP8 and 4 bits where tensor cores take the prompts, against a loop in double. Label gpu:
// without a device every test that runs the op fails.
#include "hearth/kernels/attention/attention_coded_sm90.h"

#include <gtest/gtest.h>

#include "hearth/kernels/attention/attention_exact_test.h"
#include "hearth/kernels/gpu_test.h"

namespace hearth {
namespace {

AttentionCase make_case(KvFormatId format, int64_t group, int64_t kv_heads, int64_t head_dim, int64_t block_tokens,
                        int64_t window, std::vector<TestStep::Sequence> sequences) {
  return {DType::kBf16, format, group * kv_heads, kv_heads, head_dim, block_tokens, window, std::move(sequences)};
}

enum class Op { kAttention, kPrefillAlone };

// The op, `times` times.
Status run_coded(AttentionRun& run, const StepBatch& batch, int64_t first_row, TestTensor& out, Op op = Op::kAttention,
                 int times = 1) {
  GpuExec gpu(batch,
              attention_sm90_workspace_bytes(batch.num_tokens(), run.c.heads, run.c.head_dim, longest(run.c), 1));
  OnDevice q(run.q), device_out(out);
  OnDevice channel_scale(run.channel_scale), k_scale(run.k_scale), v_scale(run.v_scale);
  DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
  AttentionArgs args = run.args(out);
  args.q = q.view().slice_rows(first_row, batch.num_tokens());
  args.out = device_out.view().slice_rows(first_row, batch.num_tokens());
  args.k_channel_scale = channel_scale.view(), args.k_scale = k_scale.vector(), args.v_scale = v_scale.vector();
  args.kv.base = pool.data();
  args.batch = &gpu.batch();
  for (int i = 0; i < times; ++i) {
    if (op == Op::kAttention) {
      HEARTH_TRY(attention_sm90(args, gpu.exec()));
    } else {
      HEARTH_TRY_ASSIGN(const KvScales scales, check_kv_scales("attention", args.kv.layout,
                                                               {args.k_channel_scale, args.k_scale, args.v_scale}));
      HEARTH_TRY(sm90::attention_coded_prefill_sm90(args, scales, gpu.exec()));
    }
  }
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

void check(AttentionRun& run, int64_t stride) {
  TestTensor out = run.empty_out();
  ASSERT_TRUE(sm90::takes_attention_coded(run.args(out)));
  const Status status = run_coded(run, run.step.batch(), 0, out);
  ASSERT_TRUE(status) << status.error().message;
  expect_exact(run, run.step.batch(), out, stride);
}
void check(const AttentionCase& c, uint64_t seed, int64_t stride = 1) {
  SCOPED_TRACE(::testing::Message() << "seed " << seed << ", " << describe(c));
  AttentionRun run(c, seed);
  check(run, stride);
}

TEST(AttentionCodedSm90, OneSequence) {
  for (KvFormatId format : kCodedFormats)
    for (int64_t length : {2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 400})
      for (int64_t head_dim : {64, 128}) check(make_case(format, 1, 2, head_dim, 16, 0, {{0, length}}), 32001);
}

TEST(AttentionCodedSm90, GroupsBlocksAndWindows) {
  const std::vector<TestStep::Sequence> batch = {{0, 130}, {300, 37}, {0, 2}, {127, 129}};
  for (KvFormatId format : kCodedFormats)
    for (int64_t head_dim : {64, 128}) {
      for (int64_t group : {2, 3, 4, 7, 8}) check(make_case(format, group, 2, head_dim, 16, 0, batch), 32002, 13);
      for (int64_t block_tokens : {8, 32, 64, 128, 256})
        check(make_case(format, 3, 1, head_dim, block_tokens, 0, batch), 32003, 7);
      for (int64_t window : {1, 2, 33, 127, 128, 129, 300})
        check(make_case(format, 4, 1, head_dim, 16, window, batch), 32004, 7);
    }
}

TEST(AttentionCodedSm90, LongPrompts) {
  for (KvFormatId format : kCodedFormats) {
    check(make_case(format, 2, 1, 128, 16, 0, {{0, 4096}}), 32005, 61);
    check(make_case(format, 4, 1, 64, 16, 0, {{2048, 700}}), 32005, 61);
  }
}

// More tiles than blocks: each takes several, of long and short sequences.
TEST(AttentionCodedSm90, MoreTilesThanBlocks) {
  for (KvFormatId format : kCodedFormats)
    for (int64_t head_dim : {64, 128}) {
      check(make_case(format, 1, 32, head_dim, 16, 0, {{0, 700}, {0, 1}, {130, 300}, {0, 129}, {5, 2}, {0, 600}}),
            32006, 37);
      check(make_case(format, 4, 8, head_dim, 64, 200, {{0, 500}, {0, 90}, {300, 333}}), 32007, 29);
    }
}

// Sequences of one token beside prompts are the other kernel's, to the bits that they have alone.
TEST(AttentionCodedSm90, MixedSteps) {
  constexpr uint64_t kSeed = 32008;
  for (KvFormatId format : kCodedFormats)
    for (int64_t head_dim : {64, 128}) {
      const AttentionCase c =
          make_case(format, 4, 2, head_dim, 16, 0, {{0, 5}, {17, 1}, {0, 0}, {260, 3}, {64, 70}, {999, 1}, {0, 1}});
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
      AttentionRun run(c, kSeed);
      check(run, 1);
      TestTensor all = run.empty_out(), prefill = run.empty_out(), alone = run.empty_out();
      const TestTensor untouched = run.empty_out();
      ASSERT_TRUE(run_coded(run, run.step.batch(), 0, all));
      ASSERT_TRUE(run_coded(run, run.step.batch(), 0, prefill, Op::kPrefillAlone));
      const StepBatch& batch = run.step.batch();
      for (int64_t s = 0; s < batch.num_sequences(); ++s) {
        const int64_t first = batch.query_start[s];
        if (batch.query_len(s) == 1) {
          EXPECT_TRUE(prefill.same_row_bits(first, untouched, first)) << "the prefill kernel wrote sequence " << s;
          ASSERT_TRUE(run_coded(run, run.step.part(s, 0, 1), first, alone));
          EXPECT_TRUE(all.same_row_bits(first, alone, first)) << "sequence " << s;
        }
        for (int64_t t = first; batch.query_len(s) > 1 && t < batch.query_start[s + 1]; ++t)
          EXPECT_TRUE(all.same_row_bits(t, prefill, t)) << "token " << t << " is not the prefill kernel's";
      }
    }
}

// I3: alone, in pieces of several tokens, in a batch, and when the counter of tiles has been used.
TEST(AttentionCodedSm90, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 32009;
  for (KvFormatId format : kCodedFormats)
    for (int64_t window : {0, 100})
      for (int64_t piece : {61, 128}) {
        const AttentionCase c =
            make_case(format, 3, 2, window > 0 ? 64 : 128, 16, window, {{0, 520}, {131, 3}, {300, 1}});
        SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c) << ", pieces of " << piece);
        AttentionRun run(c, kSeed);
        TestTensor all = run.empty_out(), again = run.empty_out(), chunked = run.empty_out();
        ASSERT_TRUE(run_coded(run, run.step.batch(), 0, all));
        ASSERT_TRUE(run_coded(run, run.step.batch(), 0, again, Op::kAttention, 5));
        EXPECT_TRUE(all.same_bits(again));
        for (int64_t s = 0; s < 3; ++s)
          for (int64_t begin = 0; begin < c.sequences[s].queries; begin += piece) {
            const int64_t end = std::min<int64_t>(begin + piece, c.sequences[s].queries);
            ASSERT_TRUE(run_coded(run, run.step.part(s, begin, end), run.step.batch().query_start[s] + begin, chunked));
          }
        for (int64_t t = 0; t < all.rows(); ++t)
          ASSERT_TRUE(all.same_row_bits(t, chunked, t)) << "first at token " << t;
      }
}

TEST(AttentionCodedSm90, LargeScoresDoNotOverflow) {
  constexpr uint64_t kSeed = 32010;
  for (KvFormatId format : kCodedFormats) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << kv_format_name(format));
    // Transformed queries are rounded to 11 bits, and a score near 5000 moves by units: rows are a mean of values all the
    // same.
    const bool rounded = format == KvFormatId::kInt4Fireq || format == KvFormatId::kInt4Saw;
    AttentionRun run(make_case(format, 4, 2, 128, 16, 0, {{0, 200}}), kSeed);
    run.q.fill(run.random, 2000);
    const TestTensor wanted = run.reference();
    TestTensor out = run.empty_out();
    ASSERT_TRUE(run_coded(run, run.step.batch(), 0, out));
    EXPECT_LE(max_error(out, wanted), rounded ? 12 : 5e-2);
    for (int64_t t = 0; t < out.rows(); ++t)
      for (int64_t i = 0; i < out.cols(); ++i) ASSERT_LE(std::abs(out.at(t, i)), 6) << "token " << t;
  }
}

// Keys and values far from 1, by steps or by scales of the checkpoint, with scores as ever; and rows of zeros.
TEST(AttentionCodedSm90, ExtremeScales) {
  constexpr uint64_t kSeed = 32011;
  for (KvFormatId format : kCodedFormats)
    for (float k : {1e-3f, 1.0f, 1e4f})
      for (float v : {1e-3f, 3e4f}) {
        const AttentionCase c = make_case(format, 4, 2, 128, 16, 0, {{0, 150}, {100, 40}});
        SCOPED_TRACE(::testing::Message()
                     << "seed " << kSeed << ", " << describe(c) << ", keys " << k << ", values " << v);
        AttentionRun run(c, kSeed);
        run.q.fill(run.random, 1.5f / k);
        for (int64_t i = 0; i < c.heads * c.head_dim; ++i) run.q.set(7, i, 0);
        const bool fp8 = format == KvFormatId::kFp8;
        run.v_scale.set(0, 0, fp8 ? v : 1);
        for (int64_t h = 0; h < 2; ++h) run.k_scale.set(0, h, fp8 ? k : 1);
        std::vector<float> key(128), value(128);
        for (int64_t s = 0; s < 2 && !fp8; ++s)
          for (int64_t j = 0; j < run.step.batch().context_len[s]; ++j)
            for (int64_t h = 0; h < 2; ++h) {
              for (int i = 0; i < 128; ++i) key[i] = k * run.random.normal(), value[i] = v * run.random.normal();
              if (j % 11 == 5) key.assign(128, 0), value.assign(128, 0);
              run.step.set_head(s, 1, false, j, h, key), run.step.set_head(s, 1, true, j, h, value);
            }
        check(run, 1);
      }
}

// A NaN that the cache holds shows in the rows that see it, and only there where its tile is not theirs.
TEST(AttentionCodedSm90, NansShow) {
  constexpr uint64_t kSeed = 32012;
  for (KvFormatId format : kCodedFormats)
    for (bool values : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << kv_format_name(format) << ", values " << values);
      AttentionRun run(make_case(format, 2, 1, 128, 16, 0, {{0, 300}}), kSeed);
      run.step.set_head(0, 1, values, 130, 0, std::vector<float>(128, NAN));
      TestTensor out = run.empty_out();
      ASSERT_TRUE(run_coded(run, run.step.batch(), 0, out));
      for (int64_t t = 0; t < 300; ++t) {
        const float x = out.at(t, 5);
        EXPECT_TRUE(t < 128 ? std::isfinite(x) : t < 130 || std::isnan(x)) << "token " << t << ": " << x;
      }
    }
}

// What it does not take stays where it was.
TEST(AttentionCodedSm90, TakesOnlyWhatItHas) {
  const std::vector<TestStep::Sequence> one = {{0, 2}};
  AttentionCase f32 = make_case(KvFormatId::kFp8, 4, 2, 128, 16, 0, one);
  f32.dtype = DType::kF32;
  for (const AttentionCase& c :
       {f32, make_case(KvFormatId::kBf16, 4, 2, 128, 16, 0, one), make_case(KvFormatId::kF32, 4, 2, 128, 16, 0, one),
        make_case(KvFormatId::kInt4, 4, 2, 80, 16, 0, one), make_case(KvFormatId::kFp8, 9, 2, 128, 16, 0, one),
        make_case(KvFormatId::kFp8, 4, 2, 128, 12, 0, one), make_case(KvFormatId::kInt4Saw, 4, 2, 128, 4, 0, one)}) {
    AttentionRun run(c, 1);
    const TestTensor out = run.empty_out();
    EXPECT_FALSE(sm90::takes_attention_coded(run.args(out))) << describe(c);
  }
}

}  // namespace
}  // namespace hearth
