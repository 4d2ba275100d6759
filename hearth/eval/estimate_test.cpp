// SPDX-License-Identifier: Apache-2.0
// Figures and their standard errors against the textbook's formulas and against the jackknife written out: every
// figure computed again from the windows that are left, without sums in between.
#include "hearth/eval/estimate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "hearth/base/random.h"

namespace hearth {
namespace {

constexpr uint64_t kSeed = 11;
constexpr int64_t kCtx = 64;

// Windows of plausible size whose baseline and model share the window's difficulty.
struct Windows {
  std::vector<WindowSums> model, baseline;
};

Windows random_windows(int64_t n) {
  Random random(kSeed);
  Windows w;
  for (int64_t i = 0; i < n; ++i) {
    const double reference = kCtx * (3.5 + 0.4 * static_cast<double>(random.normal()));
    const double harm = 0.02 + 0.01 * static_cast<double>(random.uniform());
    const auto sums = [&](double share) {
      const double kl = kCtx * harm * share * (1 + 0.1 * static_cast<double>(random.normal()));
      return WindowSums{.nll = reference + kl + 0.05 * static_cast<double>(random.normal()),
                        .nll_reference = reference,
                        .kl = kl,
                        .kl_max = kl / 10,
                        .same_top = kCtx - random.below(9)};
    };
    w.model.push_back(sums(0.4));
    w.baseline.push_back(sums(1));
  }
  return w;
}

using Figure = std::function<double(const std::vector<WindowSums>& model, const std::vector<WindowSums>& baseline)>;

double mean(const std::vector<WindowSums>& windows, double WindowSums::*field) {
  double sum = 0;
  for (const WindowSums& w : windows) sum += w.*field;
  return sum / static_cast<double>(windows.size()) / kCtx;
}

void expect_jackknife(const Estimate& estimate, const Windows& w, const Figure& figure) {
  const size_t n = w.model.size();
  std::vector<double> without;
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    Windows left = w;
    left.model.erase(left.model.begin() + static_cast<std::ptrdiff_t>(i));
    left.baseline.erase(left.baseline.begin() + static_cast<std::ptrdiff_t>(i));
    without.push_back(figure(left.model, left.baseline));
    sum += without.back();
  }
  double squares = 0;
  for (const double value : without) squares += std::pow(value - sum / static_cast<double>(n), 2);
  const double error = std::sqrt(squares * static_cast<double>(n - 1) / static_cast<double>(n));
  const double value = figure(w.model, w.baseline);
  EXPECT_NEAR(estimate.value, value, 1e-12 * std::abs(value));
  ASSERT_TRUE(estimate.standard_error);
  // The sums differ by rounding, 1e-16 of figures of a few tens, before the differences are taken.
  EXPECT_NEAR(*estimate.standard_error, error, 1e-9 * error) << "seed " << kSeed;
}

TEST(Jackknife, OfAMeanIsTheUsualStandardError) {
  const std::vector<double> values = {3, 5, 4, 9, 1.5};
  const auto mean_without = [&](int64_t left_out) {
    double sum = 0, n = 0;
    for (size_t i = 0; i < values.size(); ++i)
      if (static_cast<int64_t>(i) != left_out) sum += values[i], n += 1;
    return sum / n;
  };
  const Estimate e = jackknife(5, mean_without);
  // Mean 4.5; squared deviations 2.25, 0.25, 0.25, 20.25, 9: s^2 = 32 / 4, s / sqrt(5) = sqrt(1.6).
  EXPECT_DOUBLE_EQ(e.value, 4.5);
  ASSERT_TRUE(e.standard_error);
  EXPECT_NEAR(*e.standard_error, std::sqrt(1.6), 1e-14);
  EXPECT_FALSE(jackknife(1, [](int64_t) { return 1.0; }).standard_error);
}

TEST(QualityFigures, EqualTheDirectComputation) {
  const Windows w = random_windows(17);
  const QualityFigures f = quality_figures(w.model, w.baseline, kCtx);
  const auto rise = [](const std::vector<WindowSums>& windows) {
    return std::exp(mean(windows, &WindowSums::nll)) - std::exp(mean(windows, &WindowSums::nll_reference));
  };
  expect_jackknife(f.nll, w, [](auto& m, auto&) { return mean(m, &WindowSums::nll); });
  expect_jackknife(f.ppl, w, [](auto& m, auto&) { return std::exp(mean(m, &WindowSums::nll)); });
  expect_jackknife(f.ppl_rise, w, [&](auto& m, auto&) { return rise(m); });
  expect_jackknife(f.kl, w, [](auto& m, auto&) { return mean(m, &WindowSums::kl); });
  ASSERT_TRUE(f.rise_share && f.kl_share);
  expect_jackknife(*f.rise_share, w, [&](auto& m, auto& b) { return rise(m) / rise(b); });
  expect_jackknife(*f.kl_share, w,
                   [](auto& m, auto& b) { return mean(m, &WindowSums::kl) / mean(b, &WindowSums::kl); });
  double same = 0, kl_max = 0;
  for (const WindowSums& one : w.model) {
    same += static_cast<double>(one.same_top) / (17 * kCtx);
    kl_max = std::max(kl_max, one.kl_max);
  }
  EXPECT_NEAR(f.same_top.value, same, 1e-14);
  EXPECT_EQ(f.kl_max, kl_max);
  // What pairing is for: the windows differ far more than the models do.
  EXPECT_LT(*f.ppl_rise.standard_error, 0.1 * *f.ppl.standard_error);
}

// First-order propagation of errors (the delta method) gives nearly the same for many windows.
TEST(QualityFigures, AgreeWithTheDeltaMethod) {
  const Windows w = random_windows(400);
  const QualityFigures f = quality_figures(w.model, w.baseline, kCtx);
  const double n = 400, share = f.kl_share->value, base = mean(w.baseline, &WindowSums::kl);
  double squares = 0;
  for (size_t i = 0; i < w.model.size(); ++i)
    squares += std::pow((w.model[i].kl - share * w.baseline[i].kl) / kCtx / base, 2);
  // The two differ in the second order, by about the squared relative error of the denominator: 1e-3 at most here.
  EXPECT_NEAR(*f.kl_share->standard_error, std::sqrt(squares / (n - 1) / n), 0.01 * *f.kl_share->standard_error);
  double nll_squares = 0;
  const double nll = mean(w.model, &WindowSums::nll);
  for (const WindowSums& one : w.model) nll_squares += std::pow(one.nll / kCtx - nll, 2);
  EXPECT_NEAR(*f.ppl.standard_error, std::exp(nll) * std::sqrt(nll_squares / (n - 1) / n),
              0.01 * *f.ppl.standard_error);
}

TEST(QualityFigures, TheBaselineIsOneAndTheReferenceZero) {
  const Windows w = random_windows(9);
  const QualityFigures base = quality_figures(w.baseline, w.baseline, kCtx);
  EXPECT_EQ(base.rise_share->value, 1.0);
  EXPECT_EQ(base.kl_share->value, 1.0);
  EXPECT_EQ(base.kl_share->standard_error, 0.0);
  std::vector<WindowSums> reference = w.model;
  for (WindowSums& one : reference) one.nll = one.nll_reference, one.kl = 0;
  const QualityFigures zero = quality_figures(reference, w.baseline, kCtx);
  EXPECT_EQ(zero.ppl_rise.value, 0.0);
  EXPECT_EQ(zero.ppl_rise.standard_error, 0.0);
  EXPECT_EQ(zero.rise_share->value, 0.0);
  EXPECT_EQ(zero.kl_share->value, 0.0);
  // Nothing to be a share of.
  const QualityFigures none = quality_figures(w.model, reference, kCtx);
  EXPECT_FALSE(std::isfinite(none.rise_share->value));
  EXPECT_FALSE(none.rise_share->standard_error);
  EXPECT_FALSE(quality_figures(w.model, {}, kCtx).rise_share);
}

TEST(LambadaFigures, PairTheItems) {
  const std::vector<LambadaScore> reference = {{true, -1}, {true, -2}, {false, -3}, {false, -4}},
                                  model = {{true, -2}, {false, -2}, {false, -4}, {false, -4}};
  const LambadaFigures f = lambada_figures(model, reference);
  EXPECT_DOUBLE_EQ(f.acc.value, 0.25);
  EXPECT_NEAR(*f.acc.standard_error, std::sqrt(0.25 * 0.75 / 3), 1e-15);
  EXPECT_DOUBLE_EQ(f.acc_change.value, -0.25);
  // Differences 0, -1, 0, 0: s^2 = 0.75 / 3, over 4.
  EXPECT_NEAR(*f.acc_change.standard_error, 0.25, 1e-15);
  EXPECT_DOUBLE_EQ(f.nll_per_word.value, 3);
}

TEST(SpeedFigures, RatesAndRatios) {
  const std::vector<double> seconds = {0.5, 0.5, 0.5}, baseline = {1, 1.5, 0.5};
  const SpeedFigures f = speed_figures(seconds, baseline, 10);
  EXPECT_DOUBLE_EQ(f.tokens_per_s.value, 20);
  EXPECT_EQ(f.tokens_per_s.standard_error, 0.0);
  EXPECT_DOUBLE_EQ(f.ratio->value, 2);
  // The mean of the baseline's times has the standard error 0.5 / sqrt(3).
  EXPECT_NEAR(*f.ratio->standard_error, 2 * 0.5 / std::sqrt(3.0), 1e-14);
  EXPECT_FALSE(speed_figures(seconds, {}, 10).ratio);
}

}  // namespace
}  // namespace hearth
