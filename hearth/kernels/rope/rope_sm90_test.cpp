// SPDX-License-Identifier: Apache-2.0
// The rope ops on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include <cfloat>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/rope/rope_test_cases.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {
namespace {

TEST(RopeTableSm90, IsTheCosineOfTheF32Angle) {
  const std::vector<int32_t> positions{0, 1, 2, 1000003, 131071, 4095};
  for (int64_t head_dim : {2, 10, 64, 128}) {
    TestTensor inv_freq = frequencies(head_dim);
    TestTensor wanted(DType::kF32, 6, head_dim), out = wanted;
    ExecContext host;
    ASSERT_TRUE(rope_table_ref({positions, inv_freq.vector(), 1.25f, wanted.view()}, host));
    GpuExec gpu({.tokens = positions, .positions = positions});
    OnDevice device_freq(inv_freq), device_out(out);
    const Status status =
        rope_table_sm90({gpu.batch().positions, device_freq.vector(), 1.25f, device_out.view()}, gpu.exec());
    ASSERT_TRUE(status) << status.error().message;
    ASSERT_TRUE(gpu.synchronize());
    device_out.copy_back();
    EXPECT_LE(max_error(out, wanted), 0x1p-23) << "head dim " << head_dim;
  }
}

// Runs the op over device copies of the run's tensors and pool, and copies back what it writes.
Status run_sm90(RopeRun& run, TestTensor& rows) {
  GpuExec gpu(run.step.batch());
  OnDevice qkv(rows), cos_sin(run.cos_sin), q_norm(run.q_norm), k_norm(run.k_norm);
  OnDevice channel_scale(run.channel_scale), channel_offset(run.channel_offset);
  OnDevice k_scale(run.k_scale), v_scale(run.v_scale);
  DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
  RopeKvWriteArgs args = run.args(rows);
  args.qkv = qkv.view(), args.cos_sin = cos_sin.view();
  if (run.c.norm) args.q_norm = q_norm.vector(), args.k_norm = k_norm.vector();
  args.k_channel_scale = channel_scale.view(), args.k_channel_offset = channel_offset.view();
  args.k_scale = k_scale.vector(), args.v_scale = v_scale.vector();
  args.kv.base = pool.data();
  args.batch = &gpu.batch();
  HEARTH_TRY(rope_kv_write_sm90(args, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  qkv.copy_back(), pool.copy_back();
  return {};
}

TEST(RopeSm90, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20290;
  for (const RopeCase& c : rope_cases()) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
    RopeRun ref(c, kSeed), gpu(c, kSeed), plain(c, kSeed);
    TestTensor ref_rows = ref.qkv, gpu_rows = ref.qkv, naive_rows = ref.qkv, naive_cached = ref.cached();
    ExecContext host;
    ASSERT_TRUE(rope_kv_write_ref(ref.args(ref_rows), host));
    const Status status = run_sm90(gpu, gpu_rows);
    ASSERT_TRUE(status) << status.error().message;
    rope_naive(plain, naive_rows, naive_cached);
    expect_as_exact_as(naive_rows, gpu_rows, ref_rows);
    expect_as_exact_as(naive_cached, gpu.cached(), ref.cached());
    // Whatever the reference leaves alone in the pool, the kernel does: both are NaN in the same places.
    const auto &a = ref.step.pool(), &b = gpu.step.pool();
    if (c.format == KvFormatId::kF32) {
      for (size_t i = 0; i < a.size(); ++i) ASSERT_EQ(std::isnan(a[i]), std::isnan(b[i])) << "float " << i;
    }
  }
}

constexpr KvFormatId kCodedFormats[] = {KvFormatId::kFp8, KvFormatId::kInt4, KvFormatId::kInt4Fireq,
                                        KvFormatId::kInt4Saw};

// Calls look(sequence, position, kv head, is value) for every head that the step writes.
template <class Look>
void for_each_written(const RopeRun& run, const Look& look) {
  const StepBatch& batch = run.step.batch();
  for (int64_t s = 0; s < batch.num_sequences(); ++s)
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t)
      for (int64_t h = 0; h < run.c.kv_heads; ++h)
        for (bool is_value : {false, true}) look(s, batch.positions[t], h, is_value);
}

// The bytes of `coded` are those that kv_codec.h gives for the numbers in `plain`, a run over the same rows with KV in
// f32; all else in the pool is as `fresh`, which no op has seen, has it.
void expect_encoded(RopeRun& coded, const RopeRun& plain, RopeRun& fresh) {
  const RopeCase& c = coded.c;
  const KvLayout& layout = coded.step.layout();
  int64_t heads = 0, different = 0;
  std::vector<std::byte> codes(layout.token_stride_bytes), steps(layout.scale_bytes);
  for_each_written(coded, [&](int64_t s, int64_t position, int64_t h, bool is_value) {
    std::vector<float> x = plain.step.head(s, 1, is_value, position, h);
    if (!is_value && c.format == KvFormatId::kInt4Fireq)
      for (int64_t i = 0; i < c.head_dim; ++i)
        x[i] = (x[i] - coded.channel_offset.at(h, i)) * coded.channel_scale.at(h, i);
    if (!is_value && c.format == KvFormatId::kInt4Saw) hadamard_rotate(std::span(x));
    store_kv_head(c.format, x, is_value ? coded.v_scale.at(0, 0) : coded.k_scale.at(0, h), codes.data(), steps.data());
    const bool same =
        std::memcmp(coded.step.codes(s, 1, is_value, position, h), codes.data(), codes.size()) == 0 &&
        (steps.empty() || std::memcmp(coded.step.steps(s, 1, is_value, position, h), steps.data(), steps.size()) == 0);
    ++heads, different += !same;
  });
  EXPECT_EQ(different, 0) << "of " << heads << " heads";
  for (RopeRun* run : {&coded, &fresh})
    for_each_written(*run, [&](int64_t s, int64_t position, int64_t h, bool is_value) {
      run->step.clear(s, 1, is_value, position, h);
    });
  EXPECT_TRUE(coded.step.same_pool(fresh.step)) << "stray writes";
}

TEST(RopeSm90, EncodesAsTheCpuDoes) {
  constexpr uint64_t kSeed = 20294;
  int ran = 0;
  for (KvFormatId format : kCodedFormats)
    for (DType dtype : {DType::kF32, DType::kBf16})
      for (bool norm : {false, true})
        for (int64_t head_dim : {2, 6, 64, 80, 128, 256}) {
          if (!KvLayout::make(format, 1, 1, head_dim, 1)) continue;
          RopeCase c{dtype, format, 6, 2, head_dim, 5, norm, {{0, 37}, {11, 1}, {3, 0}, {4, 9}}};
          SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c));
          RopeRun coded(c, kSeed), fresh(c, kSeed);
          c.format = KvFormatId::kF32;
          RopeRun plain(c, kSeed);
          TestTensor coded_rows = coded.qkv, plain_rows = plain.qkv;
          const Status status = run_sm90(coded, coded_rows);
          ASSERT_TRUE(status) << status.error().message;
          ASSERT_TRUE(run_sm90(plain, plain_rows));
          EXPECT_TRUE(coded_rows.same_bits(plain_rows)) << "queries";
          expect_encoded(coded, plain, fresh);
          ++ran;
        }
  EXPECT_GE(ran, 80);
}

// Values, which no rotation changes, at the edges of the codec: zeros of both signs, one number, numbers that a step of
// f16 cannot reach or that vanish in it, infinities, NaN.
TEST(RopeSm90, EncodesExtremesAsTheCpuDoes) {
  constexpr uint64_t kSeed = 20295;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  constexpr int64_t kHeadDim = 64, kValues = (6 + 2) * kHeadDim;
  const float peaks[] = {0.0f, -0.0f, 1.0f, -3.0f, 1e-8f, 3e-7f, 1e-40f, 70000.0f, 5e5f, 1e20f, FLT_MAX, INFINITY, NAN};
  for (KvFormatId format : kCodedFormats) {
    RopeCase c{DType::kF32, format, 6, 2, kHeadDim, 5, false, {{0, 4 * std::ssize(peaks)}}};
    SCOPED_TRACE(describe(c));
    RopeRun coded(c, kSeed), fresh(c, kSeed);
    c.format = KvFormatId::kF32;
    RopeRun plain(c, kSeed);
    for (int64_t t = 0; t < coded.qkv.rows(); ++t)
      for (int64_t i = 0; i < 2 * kHeadDim; ++i) {
        const float peak = peaks[t / 4], normal = coded.random.normal();
        // All alike, one among small ones, one among zeros, all of that size.
        const float x = t % 4 == 0   ? peak
                        : t % 4 == 1 ? (i % kHeadDim == 17 ? peak : normal * 1e-3f)
                        : t % 4 == 2 ? (i % kHeadDim == 63 ? peak
                                        : i % 3            ? 0.0f
                                                           : -0.0f)
                                     : std::clamp(normal / 4, -1.0f, 1.0f) * peak;
        coded.qkv.set(t, kValues + i, x), plain.qkv.set(t, kValues + i, x);
      }
    TestTensor coded_rows = coded.qkv, plain_rows = plain.qkv;
    ASSERT_TRUE(run_sm90(coded, coded_rows));
    ASSERT_TRUE(run_sm90(plain, plain_rows));
    expect_encoded(coded, plain, fresh);
  }
}

// Without a norm, whose sum has another order, K's numbers and so all bytes are those of a CPU that fuses
// multiplications and additions, as every host of such a GPU does.
TEST(RopeSm90, WritesTheCpusBytes) {
  constexpr uint64_t kSeed = 20296;
  std::vector<RopeCase> cases;
  for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16, KvFormatId::kFp8, KvFormatId::kInt4,
                            KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw})
    cases.push_back({DType::kBf16, format, 6, 2, 64, 16, false, {{0, 70}, {40, 3}}});
  // Many tokens whose rows lie in vectors, and what keeps a step from that: rows, head dims, few tokens.
  const std::vector<TestStep::Sequence> many{{0, 70}, {40, 3}, {5, 0}, {9, 200}};
  for (const int64_t head_dim : {16, 48, 64, 128, 256})
    cases.push_back({DType::kBf16, KvFormatId::kBf16, 8, 4, head_dim, 5, false, many, 8});
  cases.push_back({DType::kBf16, KvFormatId::kBf16, 32, 8, 128, 16, false, many, 0});
  cases.push_back({DType::kBf16, KvFormatId::kBf16, 8, 4, 128, 16, false, many, 4});
  cases.push_back({DType::kBf16, KvFormatId::kBf16, 7, 1, 128, 16, false, many, 0});
  cases.push_back({DType::kBf16, KvFormatId::kBf16, 8, 4, 40, 16, false, many, 0});
  cases.push_back({DType::kBf16, KvFormatId::kBf16, 32, 8, 128, 16, false, {{0, 5}, {40, 1}}, 0});
  for (const RopeCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", " << describe(c) << ", padding " << c.padding);
    RopeRun gpu(c, kSeed), cpu(c, kSeed);
    TestTensor gpu_rows = gpu.qkv, cpu_rows = cpu.qkv;
    ASSERT_TRUE(run_sm90(gpu, gpu_rows));
    ExecContext host;
    ASSERT_TRUE(rope_kv_write_cpu(cpu.args(cpu_rows), host));
    EXPECT_TRUE(gpu_rows.same_bits(cpu_rows)) << "queries";
    EXPECT_TRUE(gpu.step.same_pool(cpu.step)) << "keys or values";
  }
}

}  // namespace
}  // namespace hearth
