// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/second_moments/second_moments.h"

#include <gtest/gtest.h>

#include "hearth/kernels/cpu/test_targets.h"
#include "hearth/kernels/second_moments/second_moments_test_cases.h"

namespace hearth {
namespace {

TEST(SecondMomentsRef, AgreesWithArithmetic) {
  TestTensor x(DType::kF32, 2, 2, 1);
  x.set(0, 0, 1), x.set(0, 1, -2), x.set(1, 0, 3), x.set(1, 1, 4);
  Moments out(2);
  ExecContext exec;
  ASSERT_TRUE(second_moments_ref(out.args(x.view(), false), exec));
  EXPECT_EQ(out.at(0, 0), 10);
  EXPECT_EQ(out.at(0, 1), 10);
  EXPECT_EQ(out.at(1, 1), 20);
  EXPECT_EQ(out.sum_abs, (std::vector<double>{4, 6}));
  EXPECT_EQ(out.max_abs, (std::vector<float>{3, 4}));
  ASSERT_TRUE(second_moments_ref(out.args(x.view().slice_rows(1, 1), true), exec));
  EXPECT_EQ(out.at(0, 1), 22);
}

TEST(SecondMomentsCpu, NearTheReferenceAndTheSameForAllThreads) {
  constexpr uint64_t kSeed = 20281;
  Random random(kSeed);
  ThreadPool pool(3);
  for_each_cpu_target([&] {
    for (int64_t channels : {1, 17, 64, 65, 130, 200})
      for (int64_t tokens : {1, 255, 256, 257, 600}) {
        SCOPED_TRACE(::testing::Message() << "seed " << kSeed << ", [" << tokens << ", " << channels << "]");
        TestTensor x(DType::kF32, tokens, channels, 3), more(DType::kF32, 5, channels);
        x.fill(random), more.fill(random);
        Moments out(channels), alone(channels);
        ExecContext exec{.pool = &pool}, one;
        ASSERT_TRUE(second_moments_cpu(out.args(x.view(), false), exec));
        ASSERT_TRUE(second_moments_cpu(out.args(more.view(), true), exec));
        expect_moments(out, reference_moments(x, more), magnitudes_of(x, more));
        ASSERT_TRUE(second_moments_cpu(alone.args(x.view(), false), one));
        ASSERT_TRUE(second_moments_cpu(alone.args(more.view(), true), one));
        for (int64_t i = 0; i < channels; ++i)
          for (int64_t j = i; j < channels; ++j) ASSERT_EQ(out.at(i, j), alone.at(i, j)) << i << ", " << j;
      }
  });
}

TEST(SecondMoments, NamesWhatIsWrong) {
  TestTensor x(DType::kF32, 4, 6), brain(DType::kBf16, 4, 6);
  Moments out(5), six(6);
  ExecContext exec;
  EXPECT_EQ(second_moments_cpu(out.args(x.view(), false), exec).error().message,
            "second_moments: sums is [5, 5], wanted [6, 6]");
  EXPECT_EQ(second_moments_cpu(six.args(brain.view(), false), exec).error().message,
            "second_moments: x is bf16, wanted f32");
}

}  // namespace
}  // namespace hearth
