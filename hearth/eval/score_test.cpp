// SPDX-License-Identifier: Apache-2.0
// Scores against sums in double, for every instruction set.
#include "hearth/eval/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/test_targets.h"

namespace hearth {
namespace {

constexpr uint64_t kSeed = 20250611;
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(Random& random, int64_t count, float scale) {
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& x : logits) x = random.normal() * scale;
  return logits;
}

double log_sum_exp(const float* x, int64_t n) {
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, static_cast<double>(x[i]));
  for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - max);
  return max + std::log(sum);
}

class ScoreRows : public testing::TestWithParam<int64_t> {};

TEST_P(ScoreRows, MatchesDouble) {
  const int64_t vocab = GetParam(), rows = 5;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  for_each_cpu_target([&] {
    Random random(kSeed, static_cast<uint64_t>(vocab));
    ThreadPool pool(3);
    for (const float scale : {0.1f, 4.0f, 60.0f}) {
      const std::vector<float> logits = random_logits(random, rows * vocab, scale);
      const ConstTensorView view(logits.data(), DType::kF32, Shape{rows, vocab});
      std::vector<int32_t> targets;
      for (int64_t r = 0; r < rows; ++r) targets.push_back(static_cast<int32_t>(random.below(vocab)));
      std::vector<TokenScore> scores(static_cast<size_t>(rows));
      ASSERT_TRUE(score_rows(view, targets, scores, pool));
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = view.row<float>(r);
        const auto i = static_cast<size_t>(r);
        const double expected = static_cast<double>(row[targets[i]]) - log_sum_exp(row, vocab);
        EXPECT_NEAR(scores[i].logprob, expected, 2e-6) << "row " << r << " scale " << scale;
        EXPECT_EQ(scores[i].top, std::max_element(row, row + vocab) - row);
      }
    }
  });
}

TEST_P(ScoreRows, DivergenceMatchesDouble) {
  const int64_t vocab = GetParam(), rows = 4;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  for_each_cpu_target([&] {
    Random random(kSeed + 1, static_cast<uint64_t>(vocab));
    ThreadPool pool(2);
    for (const float difference : {0.0f, 0.01f, 3.0f}) {
      const std::vector<float> p = random_logits(random, rows * vocab, 3);
      std::vector<float> q = p;
      for (float& x : q) x += random.normal() * difference;
      const ConstTensorView vp(p.data(), DType::kF32, Shape{rows, vocab}),
          vq(q.data(), DType::kF32, Shape{rows, vocab});
      std::vector<RowDivergence> out(static_cast<size_t>(rows));
      ASSERT_TRUE(divergence_rows(vp, vq, out, pool));
      for (int64_t r = 0; r < rows; ++r) {
        const float *a = vp.row<float>(r), *b = vq.row<float>(r);
        const double za = log_sum_exp(a, vocab), zb = log_sum_exp(b, vocab);
        double expected = 0;
        for (int64_t i = 0; i < vocab; ++i) {
          const double lp = static_cast<double>(a[i]) - za, lq = static_cast<double>(b[i]) - zb;
          expected += std::exp(lp) * (lp - lq);
        }
        const RowDivergence& row = out[static_cast<size_t>(r)];
        EXPECT_NEAR(row.kl, expected, 4e-6) << "row " << r << " difference " << difference;
        EXPECT_EQ(row.same_top, std::max_element(a, a + vocab) - a == std::max_element(b, b + vocab) - b);
        if (difference == 0.0f) {
          EXPECT_EQ(row.kl, 0.0);
          EXPECT_TRUE(row.same_top);
        }
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, ScoreRows, testing::Values(1, 3, 15, 16, 17, 127, 1024, 1025, 8192, 32003));

TEST(Score, TiesGoToTheSmallerIdAndStridesAreObeyed) {
  const std::vector<float> logits = {1, 3, 3, 99, 3, 1, 3, 99};
  ThreadPool pool(1);
  const std::vector<int32_t> targets = {1, 1};
  std::vector<TokenScore> scores(2);
  ASSERT_TRUE(score_rows(ConstTensorView(logits.data(), DType::kF32, Shape{2, 3}, 4), targets, scores, pool));
  EXPECT_EQ(scores[0].top, 1);
  EXPECT_EQ(scores[1].top, 0);
  EXPECT_NEAR(scores[0].logprob, -std::log(2 + std::exp(-2.0)), 1e-6);
}

TEST(Score, ABrokenRowIsAnError) {
  ThreadPool pool(1);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
    std::vector<float> logits(40, 0.5f);
    logits[20 + 7] = bad;
    const std::vector<int32_t> targets = {0, 0};
    std::vector<TokenScore> scores(2);
    const Status status = score_rows(ConstTensorView(logits.data(), DType::kF32, Shape{2, 20}), targets, scores, pool);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kInternal);
    EXPECT_THAT(status.error().message, testing::HasSubstr("row 1"));
  }
}

TEST(Score, MinusInfinityIsAProbabilityOfZero) {
  std::vector<float> logits(20, 0.0f);
  for (size_t i = 10; i < 20; ++i) logits[i] = -kInf;
  ThreadPool pool(1);
  const std::vector<int32_t> targets = {3};
  std::vector<TokenScore> scores(1);
  ASSERT_TRUE(score_rows(ConstTensorView(logits.data(), DType::kF32, Shape{1, 20}), targets, scores, pool));
  EXPECT_NEAR(scores[0].logprob, -std::log(10.0), 1e-6);
}

}  // namespace
}  // namespace hearth
