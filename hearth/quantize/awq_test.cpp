// SPDX-License-Identifier: Apache-2.0
// AWQ's scale search: helps where few input channels are large, leaves weights alone where none is.
#include "hearth/quantize/awq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr WeightFormat kInt4{
    .code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kBf16, .group_k = 128};

struct Case {
  std::vector<float> first, second;  // weights [32][k] and [48][k]
  SecondMoments moments;
};

Case make_case(int64_t k, float outlier, Compute& compute) {
  Random random(11);
  Case made{.first = std::vector<float>(static_cast<size_t>(32 * k)),
            .second = std::vector<float>(static_cast<size_t>(48 * k)),
            .moments = SecondMoments(k)};
  for (float& value : made.first) value = random.normal();
  for (float& value : made.second) value = random.normal();
  std::vector<float> x(static_cast<size_t>(1000 * k));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = random.normal() * (i % static_cast<size_t>(k) % 50 == 7 ? outlier : 1.0f);
  EXPECT_TRUE(made.moments.add(x, compute));
  return made;
}

TEST(Awq, ProtectsLargeChannels) {
  ThreadPool pool(2);
  const auto compute = make_cpu_compute(pool);
  const int64_t k = 256;
  const Case made = make_case(k, 24.0f, *compute);
  const AwqMatrix matrices[] = {{made.first, 32}, {made.second, 48}};
  AwqOptions options;
  options.encode.format = kInt4;
  const Result<AwqScales> found = search_awq_scales(matrices, made.moments, options, *compute);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_LT(found->loss, 0.5 * found->plain_loss);
  // The loss is that of the scaled weights on the divided input, all rows judging here.
  std::vector<float> inverse(static_cast<size_t>(k));
  std::ranges::transform(found->scales, inverse.begin(), [](float scale) { return 1 / scale; });
  const SecondMoments divided = made.moments.scaled(inverse);
  double loss = 0;
  for (const AwqMatrix& matrix : matrices) {
    std::vector<float> w(matrix.w.begin(), matrix.w.end());
    for (size_t i = 0; i < w.size(); ++i) w[i] *= found->scales[i % static_cast<size_t>(k)];
    EncodeReport report;
    ASSERT_TRUE(encode(w, matrix.n, k, &divided, options.encode, *compute, &report));
    loss += report.proxy_loss;
  }
  EXPECT_DOUBLE_EQ(loss, found->loss);
  EXPECT_GT(found->scales[7], 2 * found->scales[8]);
  const auto [least, most] = std::ranges::minmax(found->scales);
  EXPECT_NEAR(least * most, 1, 1e-5);
}

TEST(Awq, NeverWorse) {
  ThreadPool pool(2);
  const auto compute = make_cpu_compute(pool);
  const Case made = make_case(128, 0.0f, *compute);  // channels 7, 57, 107 are dead
  const AwqMatrix matrices[] = {{made.first, 32}};
  AwqOptions options;
  options.encode.format = kInt4;
  options.max_rows = 10;
  const Result<AwqScales> found = search_awq_scales(matrices, made.moments, options, *compute);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_LE(found->loss, found->plain_loss);
  EXPECT_EQ(found->scales[7], 1.0f);
  EXPECT_TRUE(std::ranges::all_of(found->scales, [](float scale) { return std::isfinite(scale) && scale > 0; }));
  EXPECT_FALSE(search_awq_scales(matrices, SecondMoments(128), options, *compute));
  EXPECT_FALSE(search_awq_scales({}, made.moments, options, *compute));
}

}  // namespace
}  // namespace hearth
