// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/rope/rope.h"

#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/rope/rope_test_cases.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {
namespace {

TEST(RopeTable, IsTheCosineOfTheF32Angle) {
  const std::vector<int32_t> positions{0, 1, 2, 1000003, 131071};
  const TestTensor inv_freq = frequencies(10);
  ThreadPool pool(2);
  ExecContext exec{.pool = &pool};
  TestTensor ref(DType::kF32, 5, 10), cpu = ref;
  ASSERT_TRUE(rope_table_ref({positions, inv_freq.vector(), 1.25f, ref.view()}, exec));
  ASSERT_TRUE(rope_table_cpu({positions, inv_freq.vector(), 1.25f, cpu.view()}, exec));
  EXPECT_TRUE(ref.same_bits(cpu));
  for (int64_t t = 0; t < 5; ++t)
    for (int64_t i = 0; i < 5; ++i) {
      volatile float angle = static_cast<float>(positions[t]) * inv_freq.at(0, i);
      EXPECT_FLOAT_EQ(ref.at(t, i), static_cast<float>(1.25 * std::cos(double{angle})));
      EXPECT_FLOAT_EQ(ref.at(t, 5 + i), static_cast<float>(1.25 * std::sin(double{angle})));
    }
  EXPECT_EQ(ref.at(0, 3), 1.25f);
  EXPECT_EQ(ref.at(0, 8), 0);
}

using RopeOp = Status (*)(const RopeKvWriteArgs&, ExecContext&);

TEST(RopeRef, RotatesByNinetyDegreesAndKeepsLengths) {
  // A quarter turn takes (a, b) to (-b, a); V is stored as it is.
  Random random(1);
  TestStep step(KvFormatId::kF32, 1, 1, 2, 4, {{2, 1}}, random);
  TestTensor qkv(DType::kF32, 1, 6), cos_sin(DType::kF32, 1, 2);
  for (int64_t i = 0; i < 6; ++i) qkv.set(0, i, static_cast<float>(i + 1));
  cos_sin.set(0, 0, 0), cos_sin.set(0, 1, 1);
  ExecContext exec;
  ASSERT_TRUE(rope_kv_write_ref({.qkv = qkv.view(),
                                 .cos_sin = cos_sin.view(),
                                 .heads = 1,
                                 .kv_heads = 1,
                                 .head_dim = 2,
                                 .kv = step.kv(),
                                 .batch = &step.batch()},
                                exec));
  EXPECT_EQ(qkv.at(0, 0), -2);
  EXPECT_EQ(qkv.at(0, 1), 1);
  EXPECT_EQ(step.at(0, 0, false, 2, 0, 0), -4);
  EXPECT_EQ(step.at(0, 0, false, 2, 0, 1), 3);
  EXPECT_EQ(step.at(0, 0, true, 2, 0, 0), 5);
  EXPECT_EQ(step.at(0, 0, true, 2, 0, 1), 6);
  EXPECT_EQ(qkv.at(0, 2), 3) << "K in qkv was changed";
  EXPECT_TRUE(std::isnan(step.at(0, 0, false, 1, 0, 0))) << "another position was written";
}

TEST(RopeRef, ScoresDependOnTheDistanceAlone) {
  // The property that the embedding is for: <R(m) q, R(n) k> is a function of m - n.
  constexpr uint64_t kSeed = 20291;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  TestTensor row(DType::kF32, 1, 3 * 64);
  row.fill(random);
  const auto score = [&](int32_t m, int32_t n) {
    TestStep step(KvFormatId::kF32, 1, 1, 64, 16, {{0, 2}}, random);
    TestTensor qkv(DType::kF32, 2, 3 * 64), cos_sin(DType::kF32, 2, 64);
    for (int64_t i = 0; i < 3 * 64; ++i) qkv.set(0, i, row.at(0, i)), qkv.set(1, i, row.at(0, i));
    ExecContext exec;
    const std::vector<int32_t> positions{m, n};
    EXPECT_TRUE(rope_table_ref({positions, frequencies(64).vector(), 1.0f, cos_sin.view()}, exec));
    EXPECT_TRUE(rope_kv_write_ref({.qkv = qkv.view(),
                                   .cos_sin = cos_sin.view(),
                                   .heads = 1,
                                   .kv_heads = 1,
                                   .head_dim = 64,
                                   .kv = step.kv(),
                                   .batch = &step.batch()},
                                  exec));
    double sum = 0;
    for (int64_t i = 0; i < 64; ++i) sum += qkv.at(0, i) * step.at(0, 0, false, 1, 0, i);
    return sum;
  };
  EXPECT_NEAR(score(5, 2), score(103, 100), 2e-4);
  EXPECT_GT(std::abs(score(5, 2) - score(6, 2)), 1e-2);
}

TEST(RopeCpu, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20290;
  ThreadPool pool(3);
  for_each_cpu_target([&] {
    for (const RopeCase& c : rope_cases()) {
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
      RopeRun ref(c, kSeed), cpu(c, kSeed), plain(c, kSeed);
      TestTensor ref_rows = ref.qkv, cpu_rows = ref.qkv, naive_rows = ref.qkv, naive_cached = ref.cached();
      ExecContext exec{.pool = &pool};
      ASSERT_TRUE(rope_kv_write_ref(ref.args(ref_rows), exec));
      ASSERT_TRUE(rope_kv_write_cpu(cpu.args(cpu_rows), exec));
      rope_naive(plain, naive_rows, naive_cached);
      expect_as_exact_as(naive_rows, cpu_rows, ref_rows);
      expect_as_exact_as(naive_cached, cpu.cached(), ref.cached());
      // Everything that is not a K or V of this step's tokens keeps its bits, in both.
      for (RopeRun* run : {&ref, &cpu}) {
        for (int64_t s = 0; s < run->step.batch().num_sequences(); ++s)
          for (int64_t t = run->step.batch().query_start[s]; t < run->step.batch().query_start[s + 1]; ++t)
            for (int64_t i = 0; i < 2 * c.kv_heads * c.head_dim; ++i) {
              const int64_t width = c.kv_heads * c.head_dim;
              run->step.set(s, 1, i >= width, run->step.batch().positions[t], i % width / c.head_dim, i % c.head_dim,
                            0);
            }
      }
      EXPECT_TRUE(ref.step.same_pool(cpu.step)) << "stray writes";
    }
  });
}

constexpr KvFormatId kCodedFormats[] = {KvFormatId::kFp8, KvFormatId::kInt4, KvFormatId::kInt4Fireq,
                                        KvFormatId::kInt4Saw};

bool stores(KvFormatId format, int64_t head_dim) { return KvLayout::make(format, 1, 1, head_dim, 1).has_value(); }

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

// The bytes of a coded cache are the codec's, of K as the op writes it to a cache of f32, transformed.
TEST(RopeCpu, EncodesTheTransformedHeads) {
  constexpr uint64_t kSeed = 20293;
  ThreadPool pool(3);
  for (const auto op : {rope_kv_write_cpu, rope_kv_write_ref})
    for (KvFormatId format : kCodedFormats)
      for (DType dtype : {DType::kF32, DType::kBf16})
        for (int64_t head_dim : {2, 64, 80, 128}) {
          if (!stores(format, head_dim)) continue;
          const std::vector<TestStep::Sequence> sequences = {{0, 7}, {11, 1}, {3, 0}, {4, 9}};
          RopeCase c{dtype, format, 6, 2, head_dim, 5, true, sequences};
          SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
          for_each_cpu_target([&] {
            RopeRun coded(c, kSeed);
            c.format = KvFormatId::kF32;
            RopeRun plain(c, kSeed);
            c.format = format;
            TestTensor coded_rows = coded.qkv, plain_rows = plain.qkv;
            ExecContext exec{.pool = &pool};
            ASSERT_TRUE(op(coded.args(coded_rows), exec));
            ASSERT_TRUE(op(plain.args(plain_rows), exec));
            EXPECT_TRUE(coded_rows.same_bits(plain_rows)) << "queries";
            const StepBatch& batch = coded.step.batch();
            const KvLayout& layout = coded.step.layout();
            std::vector<std::byte> codes(layout.token_stride_bytes), steps(layout.scale_bytes);
            for (int64_t s = 0; s < batch.num_sequences(); ++s)
              for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t)
                for (int64_t h = 0; h < c.kv_heads; ++h)
                  for (bool is_value : {false, true}) {
                    const int64_t j = batch.positions[t];
                    std::vector<float> x = plain.step.head(s, 1, is_value, j, h);
                    for (int64_t i = 0; i < head_dim && !is_value && format == KvFormatId::kInt4Fireq; ++i)
                      x[i] = (x[i] - coded.channel_offset.at(h, i)) * coded.channel_scale.at(h, i);
                    if (!is_value && format == KvFormatId::kInt4Saw) hadamard_rotate(std::span(x));
                    const float scale = is_value ? coded.v_scale.at(0, 0) : coded.k_scale.at(0, h);
                    // The reference transforms in double and rounds once: its steps may differ, not their quality.
                    if (op == rope_kv_write_ref && !is_value && format != KvFormatId::kFp8) {
                      std::vector<float> wanted(head_dim);
                      store_kv_head(format, x, scale, codes.data(), steps.data());
                      load_kv_head(format, codes.data(), steps.data(), scale, wanted);
                      EXPECT_LE(squared_error(coded.step.head(s, 1, false, j, h), x),
                                1.02 * squared_error(wanted, x) + 1e-12);
                      continue;
                    }
                    store_kv_head(format, x, scale, codes.data(), steps.data());
                    EXPECT_EQ(std::memcmp(coded.step.codes(s, 1, is_value, j, h), codes.data(), codes.size()), 0);
                    if (!steps.empty()) {
                      EXPECT_EQ(std::memcmp(coded.step.steps(s, 1, is_value, j, h), steps.data(), steps.size()), 0);
                    }
                  }
            // Everything else in the pool keeps its bits.
            RopeRun fresh(c, kSeed);
            for (RopeRun* run : {&coded, &fresh})
              for (int64_t s = 0; s < batch.num_sequences(); ++s)
                for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t)
                  for (int64_t h = 0; h < c.kv_heads; ++h)
                    for (bool is_value : {false, true}) run->step.clear(s, 1, is_value, batch.positions[t], h);
            EXPECT_TRUE(coded.step.same_pool(fresh.step)) << "stray writes";
          });
        }
}

TEST(RopeCpu, ARowIsItsOwn) {
  constexpr uint64_t kSeed = 20292;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  ThreadPool pool(4);
  for_each_cpu_target([&] {
    for (const auto& [dtype, format] : {std::pair{DType::kF32, KvFormatId::kBf16},
                                        {DType::kBf16, KvFormatId::kBf16},
                                        {DType::kBf16, KvFormatId::kInt4Fireq},
                                        {DType::kF32, KvFormatId::kFp8}}) {
      const RopeCase c{dtype, format, 6, 2, 80, 16, true, {{0, 97}, {30, 1}}};
      RopeRun all(c, kSeed), single(c, kSeed);
      TestTensor all_rows = all.qkv, single_rows = single.qkv;
      ExecContext exec{.pool = &pool}, alone;
      ASSERT_TRUE(rope_kv_write_cpu(all.args(all_rows), exec));
      for (int64_t s = 0; s < 2; ++s)
        for (int64_t i = 0; i < c.sequences[s].queries; ++i) {
          const StepBatch part = single.step.part(s, i, i + 1);
          const int64_t token = single.step.batch().query_start[s] + i;
          RopeKvWriteArgs args = single.args(single_rows);
          args.batch = &part;
          args.qkv = single_rows.view().slice_rows(token, 1);
          args.cos_sin = single.cos_sin.view().slice_rows(token, 1);
          ASSERT_TRUE(rope_kv_write_cpu(args, alone));
        }
      EXPECT_TRUE(all_rows.same_bits(single_rows));
      EXPECT_TRUE(all.step.same_pool(single.step));
    }
  });
}

TEST(Rope, NamesWhatIsWrong) {
  RopeRun run({DType::kF32, KvFormatId::kF32, 6, 2, 16, 4, true, {{0, 3}}}, 1);
  ExecContext exec;
  const auto message = [&](auto&& change, RopeOp op = rope_kv_write_cpu) {
    TestTensor rows = run.qkv;
    RopeKvWriteArgs args = run.args(rows);
    change(args);
    const Status status = op(args, exec);
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_EQ(message([](auto& a) { a.heads = 5; }), "rope_kv_write: qkv is [3, 160], wanted [3, 144]");
  EXPECT_EQ(message([](auto& a) { a.head_dim = 15; }), "rope_kv_write: head dim is 15, wanted an even number");
  EXPECT_EQ(message([](auto& a) { a.kv.layout.kv_heads = 3; }),
            "rope_kv_write: 2 kv heads of 16, the KV pool has 3 of 16");
  EXPECT_EQ(message([](auto& a) { a.layer = 3; }), "rope_kv_write: layer 3, the KV pool has 3");
  EXPECT_EQ(message([](auto& a) { a.batch = nullptr; }), "rope_kv_write: no batch");
  // Scales are looked at where the format has them.
  const auto fp8 = [](auto& a) { a.kv.layout = *KvLayout::make(KvFormatId::kFp8, 3, 2, 16, 4); };
  const auto fireq = [](auto& a) { a.kv.layout = *KvLayout::make(KvFormatId::kInt4Fireq, 3, 2, 16, 4); };
  const std::vector<float> three(3, 1.0f);
  const ConstTensorView wrong(three.data(), DType::kF32, Shape{3});
  for (RopeOp op : {rope_kv_write_cpu, rope_kv_write_ref}) {
    EXPECT_EQ(message([&](auto& a) { a.k_scale = wrong; }, op), "");
    EXPECT_EQ(message([&](auto& a) { fp8(a), a.k_scale = wrong; }, op), "rope_kv_write: k_scale is [3], wanted [2]");
    EXPECT_EQ(message([&](auto& a) { fp8(a), a.v_scale.dtype = DType::kBf16; }, op),
              "rope_kv_write: v_scale is bf16, wanted f32");
    EXPECT_EQ(message([&](auto& a) { fireq(a), a.k_channel_scale = wrong; }, op),
              "rope_kv_write: k_channel_scale is [3], wanted [2, 16]");
    EXPECT_EQ(message([&](auto& a) { fireq(a), a.k_channel_offset = wrong; }, op),
              "rope_kv_write: k_channel_offset is [3], wanted [2, 16]");
    EXPECT_EQ(message([&](auto& a) { fireq(a), a.k_channel_scale = {}, a.k_channel_offset = {}; }, op), "");
  }
  StepBatch batch = run.step.batch();
  const std::vector<int32_t> far{100};
  batch.context_len = far;
  EXPECT_EQ(message([&](auto& a) { a.batch = &batch; }),
            "rope_kv_write: sequence 0 has a context of 100 tokens, its block table holds 8");
}

}  // namespace
}  // namespace hearth
