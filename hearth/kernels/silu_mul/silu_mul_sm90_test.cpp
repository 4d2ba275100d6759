// SPDX-License-Identifier: Apache-2.0
// silu_mul_sm90 on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/silu_mul/silu_mul.h"

namespace hearth {
namespace {

Status run_sm90(TestTensor& gate_up, TestTensor& out) {
  GpuExec gpu;
  OnDevice device_in(gate_up), device_out(out);
  HEARTH_TRY(silu_mul_sm90({device_in.view(), device_out.view()}, gpu.exec()));
  HEARTH_TRY(gpu.synchronize());
  device_out.copy_back();
  return {};
}

TEST(SiluMulSm90, AsExactAsANaiveLoop) {
  constexpr uint64_t kSeed = 20271;
  Random random(kSeed);
  for (int64_t ffn : {1, 3, 64, 255, 256, 257, 1021, 5000, 14336})
    for (int64_t rows : {1, 7})
      for (DType dtype : {DType::kF32, DType::kBf16}) {
        SCOPED_TRACE(::testing::Message()
                     << "seed " << kSeed << ", [" << rows << ", " << ffn << "] " << dtype_name(dtype));
        TestTensor gate_up(dtype, rows, 2 * ffn, 5), out(dtype, rows, ffn, 3), wanted = out, naive = out;
        gate_up.fill(random, 4);
        ExecContext host;
        ASSERT_TRUE(silu_mul_ref({gate_up.view(), wanted.view()}, host));
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < ffn; ++i) {
            const float g = gate_up.at(r, i);
            naive.set(r, i, g / (1.0f + std::exp(-g)) * gate_up.at(r, ffn + i));
          }
        const Status status = run_sm90(gate_up, out);
        ASSERT_TRUE(status) << status.error().message;
        expect_as_exact_as(naive, out, wanted);
        EXPECT_TRUE(std::isnan(out.at(0, ffn))) << "padding was written";
      }
}

TEST(SiluMulSm90, ExtremeGatesAndMoreRowsThanAGridHolds) {
  TestTensor gate_up(DType::kF32, 70000, 2), out(DType::kF32, 70000, 1);
  for (int64_t r = 0; r < 70000; ++r) gate_up.set(r, 0, static_cast<float>(r % 3 - 1) * 1e30f), gate_up.set(r, 1, 2);
  ASSERT_TRUE(run_sm90(gate_up, out));
  for (int64_t r = 0; r < 70000; ++r) ASSERT_EQ(out.at(r, 0), r % 3 == 2 ? 2e30f : 0) << r;
}

}  // namespace
}  // namespace hearth
