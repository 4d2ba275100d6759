// SPDX-License-Identifier: Apache-2.0
// The rope ops on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/rope/rope_test_cases.h"

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
  DeviceCopy pool(std::as_writable_bytes(std::span(run.step.pool())));
  RopeKvWriteArgs args = run.args(rows);
  args.qkv = qkv.view(), args.cos_sin = cos_sin.view();
  if (run.c.norm) args.q_norm = q_norm.vector(), args.k_norm = k_norm.vector();
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

}  // namespace
}  // namespace hearth
