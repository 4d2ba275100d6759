// SPDX-License-Identifier: Apache-2.0
// second_moments_sm90 on a GPU. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/second_moments/second_moments_test_cases.h"

namespace hearth {
namespace {

// Two calls, the second of which adds.
Moments run_sm90(TestTensor& first, TestTensor& second) {
  const int64_t k = first.cols();
  Moments out(k);
  GpuExec gpu;
  OnDevice device_first(first), device_second(second);
  DeviceCopy sums(std::as_writable_bytes(std::span(out.sums))), sum_abs(std::as_writable_bytes(std::span(out.sum_abs))),
      max_abs(std::as_writable_bytes(std::span(out.max_abs)));
  SecondMomentsArgs args{.x = device_first.view(),
                         .sums = TensorView(sums.data(), DType::kF64, {k, k}),
                         .sum_abs = TensorView(sum_abs.data(), DType::kF64, Shape{k}),
                         .max_abs = TensorView(max_abs.data(), DType::kF32, Shape{k})};
  EXPECT_TRUE(second_moments_sm90(args, gpu.exec()));
  args.x = device_second.view();
  args.add = true;
  EXPECT_TRUE(second_moments_sm90(args, gpu.exec()));
  EXPECT_TRUE(gpu.synchronize());
  for (DeviceCopy* copy : {&sums, &sum_abs, &max_abs}) copy->copy_back();
  return out;
}

// The sum as the contract has it.
double fused_sum(const TestTensor& x, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t begin = 0; begin < x.rows(); begin += kMomentTokens) {
    float part = 0;
    for (int64_t t = begin; t < std::min(begin + kMomentTokens, x.rows()); ++t)
      part = std::fma(x.at(t, i), x.at(t, j), part);
    sum += double{part};
  }
  return sum;
}

TEST(SecondMomentsSm90, NearTheReferenceAndTheContractsBits) {
  constexpr uint64_t kSeed = 20282;
  Random random(kSeed);
  // Both sizes of tiles (2048 channels and more have the large one), and their edges.
  for (int64_t channels : {1, 63, 64, 65, 384, 2053})
    for (int64_t tokens : {1, 15, 16, 17, 255, 256, 257, 600}) {
      if (channels > 2000 && tokens != 257) continue;
      SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", [" << tokens << ", " << channels << "]");
      TestTensor x(DType::kF32, tokens, channels, 3), more(DType::kF32, 5, channels);
      x.fill(random), more.fill(random);
      const Moments out = run_sm90(x, more);
      if (channels < 2000) expect_moments(out, reference_moments(x, more), magnitudes_of(x, more));
      for (int64_t n = 0; n < 500; ++n) {
        const int64_t i = random.below(channels), j = i + random.below(channels - i);
        ASSERT_EQ(out.at(i, j), fused_sum(x, i, j) + fused_sum(more, i, j)) << i << ", " << j;
      }
    }
}

TEST(SecondMomentsSm90, NoTokens) {
  TestTensor none(DType::kF32, 0, 70), more(DType::kF32, 2, 70);
  for (int64_t t = 0; t < 2; ++t)
    for (int64_t i = 0; i < 70; ++i) more.set(t, i, 2);
  const Moments out = run_sm90(none, more);
  for (int64_t i = 0; i < 70; ++i)
    for (int64_t j = i; j < 70; ++j) ASSERT_EQ(out.at(i, j), 8);
}

}  // namespace
}  // namespace hearth
