// SPDX-License-Identifier: Apache-2.0
// exp-inl.h against exp in double, on every instruction set.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/cpu/exp_test.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

void exp_all(const float* from, float* to, int64_t n) {
  const hn::CappedTag<float, 4> d;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d)))
    hn::StoreU(exp_f32(d, hn::LoadU(d, from + i)), d, to + i);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <vector>

#include "hearth/kernels/cpu/test_targets.h"

namespace hearth {
namespace {

HWY_EXPORT(exp_all);

std::vector<float> exp_of(const std::vector<float>& x) {
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(exp_all)(x.data(), y.data(), static_cast<int64_t>(x.size()));
  return y;
}

TEST(Exp, WithinTwoUnitsOfTheLastPlace) {
  for_each_cpu_target([] {
    std::vector<float> x(1 << 20);
    for (size_t i = 0; i < x.size(); ++i) x[i] = -87.32f * static_cast<float>(i) / static_cast<float>(x.size());
    const std::vector<float> y = exp_of(x);
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double wanted = std::exp(double{x[i]});
      const float rounded = static_cast<float>(wanted);
      worst = std::max(worst, std::abs(y[i] - wanted) / (std::nextafter(rounded, INFINITY) - rounded));
    }
    EXPECT_LE(worst, 2.0);
  });
}

TEST(Exp, Corners) {
  for_each_cpu_target([] {
    const std::vector<float> y = exp_of({0.0f, -0.0f, -88, -1e30f, -INFINITY, NAN, -87.34f, -1e-30f});
    for (int i : {0, 1, 7}) EXPECT_EQ(y[i], 1) << i;
    for (int i : {2, 3, 4, 6}) EXPECT_EQ(y[i], 0) << i;
    EXPECT_TRUE(std::isnan(y[5]));
  });
}

}  // namespace
}  // namespace hearth
#endif  // HWY_ONCE
