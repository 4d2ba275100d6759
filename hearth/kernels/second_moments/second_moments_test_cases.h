// SPDX-License-Identifier: Apache-2.0
// What the tests of second_moments on the CPU and on a GPU share. Tests only; one thread.
#pragma once

#include <cmath>
#include <vector>

#include "hearth/kernels/op_test.h"
#include "hearth/kernels/second_moments/second_moments.h"

namespace hearth {

// The op's output; f64 that nobody wrote is NaN.
struct Moments {
  explicit Moments(int64_t k)
      : channels(k),
        sums(static_cast<size_t>(k * k), NAN),
        sum_abs(static_cast<size_t>(k), NAN),
        max_abs(static_cast<size_t>(k), NAN) {}
  SecondMomentsArgs args(const ConstTensorView& x, bool add) {
    return {.x = x,
            .sums = TensorView(sums.data(), DType::kF64, {channels, channels}),
            .sum_abs = TensorView(sum_abs.data(), DType::kF64, Shape{channels}),
            .max_abs = TensorView(max_abs.data(), DType::kF32, Shape{channels}),
            .add = add};
  }
  double at(int64_t i, int64_t j) const { return sums[static_cast<size_t>(i * channels + j)]; }

  int64_t channels;
  std::vector<double> sums, sum_abs;
  std::vector<float> max_abs;
};

// The reference's, of two calls, the second of which adds.
inline Moments reference_moments(const TestTensor& first, const TestTensor& second) {
  Moments out(first.cols());
  ExecContext exec;
  EXPECT_TRUE(second_moments_ref(out.args(first.view(), false), exec));
  EXPECT_TRUE(second_moments_ref(out.args(second.view(), true), exec));
  return out;
}

// The same with absolute values: what the errors of sums are measured by.
inline Moments magnitudes_of(TestTensor first, TestTensor second) {
  for (TestTensor* x : {&first, &second})
    for (int64_t t = 0; t < x->rows(); ++t)
      for (int64_t i = 0; i < x->cols(); ++i) x->set(t, i, std::abs(x->at(t, i)));
  return reference_moments(first, second);
}

// Up to kMomentTokens products in f32: as many roundings of 2^-24 each, and one of each product where multiply-adds are
// not fused. Magnitudes are added in f64, by everybody in the same order.
inline void expect_moments(const Moments& out, const Moments& wanted, const Moments& magnitudes) {
  for (int64_t i = 0; i < out.channels; ++i) {
    const auto at = static_cast<size_t>(i);
    EXPECT_EQ(out.sum_abs[at], wanted.sum_abs[at]) << i;
    EXPECT_EQ(out.max_abs[at], wanted.max_abs[at]) << i;
    for (int64_t j = i; j < out.channels; ++j)
      ASSERT_NEAR(out.at(i, j), wanted.at(i, j), magnitudes.at(i, j) * static_cast<double>(kMomentTokens + 1) * 0x1p-24)
          << i << ", " << j;
  }
}

}  // namespace hearth
