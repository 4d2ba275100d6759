// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/attention/attention.h"

#include <gtest/gtest.h>

#include "hearth/kernels/attention/attention_plan.h"
#include "hearth/kernels/attention/attention_test_cases.h"
#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {
namespace {

ThreadPool& team_of_four() {
  static ThreadPool pool(4);
  return pool;
}

// Runs attention_cpu, with one thread or four, in a workspace of exactly the bytes asked for, with guards behind it.
Status run_cpu(const AttentionArgs& args, int64_t max_context, int threads) {
  const int64_t bytes =
      attention_cpu_workspace_bytes(args.q.rows(), args.heads, args.kv.layout.head_dim, max_context, threads);
  TestTensor workspace(DType::kF32, 1, bytes / 4);
  ExecContext exec{.pool = threads > 1 ? &team_of_four() : nullptr,
                   .workspace = {workspace.data(), static_cast<size_t>(bytes)}};
  return attention_cpu(args, exec);
}

TEST(AttentionRef, OneKeyGivesItsValueAndEqualKeysTheMean) {
  Random random(3);
  TestStep step(KvFormatId::kF32, 1, 1, 4, 2, {{0, 3}}, random);
  for (int64_t j = 0; j < 3; ++j)
    for (int64_t i = 0; i < 4; ++i)
      step.set(0, 0, false, j, 0, i, 0.5f), step.set(0, 0, true, j, 0, i, static_cast<float>(3 * j + i));
  TestTensor q(DType::kF32, 3, 4), out(DType::kF32, 3, 4);
  q.fill(random);
  ExecContext exec;
  ASSERT_TRUE(attention_ref(
      {.q = q.view(), .out = out.view(), .heads = 1, .scale = 1, .kv = step.kv(), .batch = &step.batch()}, exec));
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(out.at(0, i), static_cast<float>(i));
    EXPECT_FLOAT_EQ(out.at(1, i), static_cast<float>(i) + 1.5f);
    EXPECT_FLOAT_EQ(out.at(2, i), static_cast<float>(i) + 3);
  }
}

TEST(AttentionRef, WeighsKeysByTheSoftmaxOfTheirScores) {
  // Scores 0 and ln 3 make weights 1/4 and 3/4; with a window of 1 the last key is all.
  Random random(4);
  TestStep step(KvFormatId::kBf16, 1, 1, 1, 16, {{1, 1}}, random);
  step.set(0, 0, false, 0, 0, 0, 0), step.set(0, 0, false, 1, 0, 0, 1);
  step.set(0, 0, true, 0, 0, 0, 8), step.set(0, 0, true, 1, 0, 0, 16);
  TestTensor q(DType::kF32, 1, 1), out(DType::kF32, 1, 1);
  q.set(0, 0, std::log(3.0f));
  ExecContext exec;
  AttentionArgs args{.q = q.view(), .out = out.view(), .heads = 1, .scale = 1, .kv = step.kv(), .batch = &step.batch()};
  ASSERT_TRUE(attention_ref(args, exec));
  EXPECT_FLOAT_EQ(out.at(0, 0), 14);
  args.window = 1;
  ASSERT_TRUE(attention_ref(args, exec));
  EXPECT_EQ(out.at(0, 0), 16);
}

TEST(AttentionCpu, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20300;
  for (const AttentionCase& c : attention_cases()) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
    const AttentionRun run(c, kSeed);
    const TestTensor wanted = run.reference(), naive = run.naive();
    for_each_cpu_target([&] {
      for (int threads : {1, 4}) {
        const TestTensor out = run.empty_out();
        const Status status = run_cpu(run.args(out), longest(c), threads);
        ASSERT_TRUE(status) << status.error().message;
        expect_as_exact_as(naive, out, wanted);
      }
    });
  }
}

// I1 of attention_plan.h: alone, chunked, batched, with any team.
TEST(AttentionCpu, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 20301;
  for (int64_t window : {0, 100})
    for (DType dtype : {DType::kF32, DType::kBf16})
      for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4,
                                KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw})
        for (int64_t head_dim : {64, 20}) {
          if (!stores(format, head_dim)) continue;
          const AttentionCase c{dtype, format, 6, 2, head_dim, 16, window, {{0, 150}, {131, 3}, {300, 1}}};
          SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
          AttentionRun run(c, kSeed);
          for_each_cpu_target([&] {
            const TestTensor all = run.empty_out(), serial = run.empty_out();
            ASSERT_TRUE(run_cpu(run.args(all), longest(c), 4));
            ASSERT_TRUE(run_cpu(run.args(serial), longest(c), 1));
            EXPECT_TRUE(all.same_bits(serial)) << "4 threads and 1 differ";
            for (int64_t chunk : {1, 7, 128}) {
              const TestTensor chunked = run.empty_out();
              for (int64_t s = 0; s < 3; ++s)
                for (int64_t begin = 0; begin < c.sequences[s].queries; begin += chunk) {
                  const int64_t end = std::min(begin + chunk, c.sequences[s].queries);
                  const int64_t first = run.step.batch().query_start[s] + begin;
                  const StepBatch part = run.step.part(s, begin, end);
                  AttentionArgs args = run.args(chunked);
                  args.q = run.q.view().slice_rows(first, end - begin);
                  args.out = chunked.view().slice_rows(first, end - begin);
                  args.batch = &part;
                  // With four threads the partitions of single tokens are computed apart.
                  ASSERT_TRUE(run_cpu(args, longest(c), begin % 3 == 0 ? 4 : 1));
                }
              EXPECT_TRUE(all.same_bits(chunked)) << "chunks of " << chunk;
            }
          });
        }
}

// A query's transform undoes the keys': scores, and with them the outputs, are those of untransformed keys but for the
// rounding of the codes. Keys that the code holds exactly after the transform leave only that of f32.
TEST(AttentionRef, TransformsKeepTheScores) {
  constexpr uint64_t kSeed = 20304;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  for (KvFormatId format : {KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw}) {
    AttentionRun coded({.format = format, .sequences = {{20, 5}}}, kSeed), plain({.sequences = {{20, 5}}}, kSeed);
    for (int64_t j = 0; j < 25; ++j)
      for (int64_t h = 0; h < 2; ++h)
        for (bool is_value : {false, true}) {
          std::vector<float> x(64);
          for (float& v : x) v = static_cast<float>(coded.random.below(16) - 8) / 4;  // steps of 1/4
          x[3] = 1.75f, x[4] = -2;
          coded.step.set_head(0, 1, is_value, j, h, x);
          ASSERT_EQ(coded.step.head(0, 1, is_value, j, h), x) << "not exact in " << kv_format_name(format);
          // The key that becomes x by the transform.
          for (int64_t i = 0; i < 64 && !is_value && format == KvFormatId::kInt4Fireq; ++i)
            x[i] /= coded.channel_scale.at(h, i);
          if (!is_value && format == KvFormatId::kInt4Saw) hadamard_rotate(std::span(x));
          plain.step.set_head(0, 1, is_value, j, h, x);
        }
    ASSERT_TRUE(plain.q.same_bits(coded.q));
    EXPECT_LE(max_error(coded.reference(), plain.reference()), 1e-6) << kv_format_name(format);
  }
}

// What a row must not see may be anything: infinities in later positions change no bit.
TEST(AttentionCpu, LaterKeysDoNotMatter) {
  constexpr uint64_t kSeed = 20302;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  for (int64_t head_dim : {64, 20})
    for (int64_t window : {0, 40}) {
      AttentionRun run({.head_dim = head_dim, .window = window, .sequences = {{0, 150}}}, kSeed);
      for_each_cpu_target([&] {
        const TestTensor before = run.empty_out(), after = run.empty_out();
        ASSERT_TRUE(run_cpu(run.args(before), 150, 4));
        AttentionRun spoilt({.head_dim = head_dim, .window = window, .sequences = {{0, 150}}}, kSeed);
        for (int64_t j = 77; j < 150; ++j)
          for (int64_t i = 0; i < head_dim; ++i) spoilt.step.set(0, 1, i % 2, j, j % 2, i, i % 3 ? INFINITY : NAN);
        ASSERT_TRUE(run_cpu(spoilt.args(after), 150, 4));
        for (int64_t t = 0; t < 77; ++t) EXPECT_TRUE(before.same_row_bits(t, after, t)) << t;
        EXPECT_FALSE(before.same_row_bits(78, after, 78));
      });
    }
}

// Scores in the thousands: the running maximum keeps every exponential at most 1.
TEST(AttentionCpu, LargeScoresDoNotOverflow) {
  constexpr uint64_t kSeed = 20303;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  AttentionRun run({.sequences = {{0, 200}}}, kSeed);
  run.q.fill(run.random, 2000);
  const TestTensor wanted = run.reference();
  for_each_cpu_target([&] {
    const TestTensor out = run.empty_out();
    ASSERT_TRUE(run_cpu(run.args(out), 200, 4));
    for (int64_t t = 0; t < 200; ++t)
      for (int64_t i = 0; i < out.cols(); ++i) ASSERT_TRUE(std::isfinite(out.at(t, i)));
    // A difference of scores near 5000 is known to 5000 * 2^-24 or so, hence so is a weight.
    EXPECT_LE(max_error(out, wanted), 2e-2);
  });
}

TEST(AttentionPlan, UnitsCoverEveryRowOnce) {
  const AttentionRun run({.heads = 6, .kv_heads = 2, .head_dim = 8, .sequences = {{0, 50}, {9, 1}, {0, 0}, {3, 100}}},
                         1);
  const TestTensor out = run.empty_out();
  const AttentionArgs args = run.args(out);
  for (int threads : {1, 3, 64}) {
    const cpu::AttentionPlan plan = cpu::AttentionPlan::make(args, threads);
    std::vector<int> seen(run.step.tokens() * 6);
    for (int64_t u = 0; u < plan.units; ++u) {
      const cpu::AttentionUnit unit = plan.unit(u);
      EXPECT_LE(unit.row_end - unit.row_begin, plan.rows_per_unit);
      for (int64_t r = unit.row_begin; r < unit.row_end; ++r)
        ++seen.at((run.step.batch().query_start[unit.sequence] + r / 3) * 6 + unit.kv_head * 3 + r % 3);
    }
    for (int count : seen) EXPECT_EQ(count, 1);
  }
}

TEST(Attention, NamesWhatIsWrong) {
  const AttentionRun run({.sequences = {{0, 3}}}, 1);
  const TestTensor out = run.empty_out();
  const auto message = [&](auto&& change) {
    AttentionArgs args = run.args(out);
    change(args);
    const Status status = run_cpu(args, 3, 1);
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_EQ(message([](auto& a) { a.heads = 5; }), "attention: 5 heads, wanted a multiple of the 2 kv heads");
  EXPECT_EQ(message([](auto& a) { a.heads = 6; }), "attention: q is [3, 256], wanted [3, 384]");
  EXPECT_EQ(message([](auto& a) { a.window = -1; }), "attention: window is -1, wanted 0 or more");
  EXPECT_EQ(message([](auto& a) { a.layer = 2; }), "attention: layer 2, the KV pool has 2");
  const std::vector<float> three(3, 1.0f);
  EXPECT_EQ(message([&](auto& a) {
              a.kv.layout = *KvLayout::make(KvFormatId::kFp8, 2, 2, 64, 16);
              a.v_scale = ConstTensorView(three.data(), DType::kF32, Shape{3});
            }),
            "attention: v_scale is [3], wanted [2]");
  ExecContext none;
  EXPECT_EQ(attention_cpu(run.args(out), none).error().code, ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace hearth
