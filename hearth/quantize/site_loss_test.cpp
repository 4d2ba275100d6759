// SPDX-License-Identifier: Apache-2.0
// The judge of scales against encode() and its report, and that powers of two in the input do not change it.
#include "hearth/quantize/site_loss.h"

#include <gtest/gtest.h>

#include <cmath>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr int64_t kRows = 48, kColumns = 256, kTokens = 700;

struct Fixture {
  ThreadPool pool{2};
  std::unique_ptr<Compute> compute = make_cpu_compute(pool);
  LayerLinear linear{.n = kRows, .k = kColumns, .w = {}, .bias = {}};
  std::vector<float> x;  // [tokens, k], neighbours alike
  std::vector<float> ones = std::vector<float>(static_cast<size_t>(kColumns), 1.0f);

  Fixture() {
    Random random(17);
    for (int64_t i = 0; i < kRows * kColumns; ++i) linear.w.push_back(static_cast<float>(0.02 * random.normal()));
    for (int64_t t = 0; t < kTokens; ++t) {
      double last = 0;
      for (int64_t j = 0; j < kColumns; ++j) {
        last = 0.8 * last + random.normal();
        x.push_back(static_cast<float>(last * (1 + j % 5)));
      }
    }
  }

  SecondMoments moments() {
    SecondMoments result(kColumns);
    EXPECT_TRUE(result.add(x, *compute));
    return result;
  }
};

WeightFormat format_of(WeightCode code) {
  WeightFormat format{.code = code, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kF16, .group_k = 128};
  if (code == WeightCode::kBitvectors)
    format = {.code = code, .group_k = 128, .bitvectors = 4, .integer_lines = true, .act = ActFormat::kI8PerGroup};
  return format;
}

// It is tr(E H E^T) of the encoded matrix with a hundredth of H's diagonal added to it.
TEST(SiteLoss, IsWhatEncodingLoses) {
  Fixture f;
  const SecondMoments moments = f.moments();
  SiteLoss judge(moments, *f.compute);
  for (const EncodeMethod method : {EncodeMethod::kNearest, EncodeMethod::kClip, EncodeMethod::kGptq}) {
    const EncodeOptions options{.format = format_of(WeightCode::kI4SignMagnitude),
                                .method = method,
                                .order = ColumnOrder::kStored,
                                .sweeps = 0};
    EncodeReport report;
    const auto matrix = encode(f.linear.w, kRows, kColumns, &moments, options, *f.compute, &report);
    ASSERT_TRUE(matrix) << matrix.error().message;
    double damped = report.proxy_loss;
    std::vector<float> row(static_cast<size_t>(kColumns));
    for (int64_t r = 0; r < kRows; ++r) {
      matrix->dequantize_row(r, row);
      for (int64_t j = 0; j < kColumns; ++j) {
        const double e = double{f.linear.row(r)[static_cast<size_t>(j)]} - double{row[static_cast<size_t>(j)]};
        damped += 0.01 * e * e * moments.diagonal(j) / kTokens;
      }
    }
    const auto loss = judge(f.linear, f.ones, options);
    ASSERT_TRUE(loss) << loss.error().message;
    // Damping is even here and not in encode(), which moves a few codes.
    EXPECT_NEAR(*loss / damped, 1, method == EncodeMethod::kNearest ? 1e-4 : 0.02) << static_cast<int>(method);
  }
}

TEST(SiteLoss, PowersOfTwoChangeNoBit) {
  Fixture f;
  SiteLoss plain(f.moments(), *f.compute);
  std::vector<float> factors = f.ones;
  for (const size_t j : {3u, 9u, 40u, 200u}) factors[j] = j < 10 ? 64.0f : 1.0f / 32;
  for (size_t i = 0; i < f.x.size(); ++i) f.x[i] *= factors[i % static_cast<size_t>(kColumns)];
  SiteLoss moved(f.moments(), *f.compute);
  std::vector<float> back = f.ones;
  for (size_t j = 0; j < back.size(); ++j) back[j] = 0.75f / factors[j];
  std::vector<float> same(back.size(), 0.75f);
  for (const WeightCode code : {WeightCode::kI4SignMagnitude, WeightCode::kC4, WeightCode::kBitvectors})
    for (const EncodeMethod method : {EncodeMethod::kNearest, EncodeMethod::kClip, EncodeMethod::kGptq}) {
      const EncodeOptions options{.format = format_of(code), .method = method};
      const auto one = plain(f.linear, same, options), other = moved(f.linear, back, options);
      ASSERT_TRUE(one && other);
      EXPECT_EQ(*one, *other) << static_cast<int>(code) << ' ' << static_cast<int>(method);
    }
}

// A channel far above the others of its group costs INT8 activations, whatever the weights lose.
TEST(SiteLoss, SeesInt8Activations) {
  Fixture f;
  for (size_t i = 5; i < f.x.size(); i += static_cast<size_t>(kColumns)) f.x[i] *= 64;
  for (int64_t r = 0; r < kRows; ++r) f.linear.row(r)[5] /= 64;
  SiteLoss judge(f.moments(), *f.compute);
  EncodeOptions options{.format = format_of(WeightCode::kBitvectors), .method = EncodeMethod::kNearest};
  const auto with = judge(f.linear, f.ones, options);
  options.format = format_of(WeightCode::kI4SignMagnitude);
  const auto without = judge(f.linear, f.ones, options);
  ASSERT_TRUE(with && without);
  // Of the 128 inputs of its group each has an error of variance (peak / 127)^2 / 12.
  double weights = 0, peak = 0;
  for (int64_t r = 0; r < kRows; ++r)
    for (size_t j = 0; j < 128; ++j) weights += double{f.linear.row(r)[j]} * double{f.linear.row(r)[j]};
  for (int64_t t = 0; t < kTokens; ++t) {
    double largest = 0;
    for (size_t j = 0; j < 128; ++j)
      largest = std::max(largest, std::fabs(double{f.x[static_cast<size_t>(t * kColumns) + j]}));
    peak += largest * largest / kTokens;
  }
  const double expected = peak / (12 * 127 * 127) * weights;
  EXPECT_GT(*with - *without, 0.3 * expected);
}

TEST(SiteLoss, RefusesWhatEncodeRefuses) {
  Fixture f;
  SiteLoss judge(f.moments(), *f.compute);
  f.linear.w[70] = NAN;
  const auto loss = judge(f.linear, f.ones, {.format = format_of(WeightCode::kC4), .method = EncodeMethod::kGptq});
  ASSERT_FALSE(loss);
  EXPECT_EQ(loss.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace hearth
