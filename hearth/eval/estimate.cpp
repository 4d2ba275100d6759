// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/estimate.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hearth {
namespace {

// A column of numbers whose mean can be had without one of them.
class Column {
 public:
  template <class T, class F>
  Column(std::span<const T> rows, F value) {
    for (const T& row : rows) {
      values_.push_back(static_cast<double>(value(row)));
      sum_ += values_.back();
    }
  }
  double mean(int64_t left_out) const {
    const auto n = static_cast<double>(values_.size());
    return left_out < 0 ? sum_ / n : (sum_ - values_[static_cast<size_t>(left_out)]) / (n - 1);
  }

 private:
  std::vector<double> values_;
  double sum_ = 0;
};

}  // namespace

Estimate jackknife(int64_t n, FunctionRef<double(int64_t)> figure) {
  Estimate estimate{.value = figure(-1), .standard_error = std::nullopt};
  if (n < 2) return estimate;
  // Differences to the first, so that a figure that no window moves has the error 0.
  std::vector<double> without;
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) {
    without.push_back(figure(i));
    mean += (without.back() - without.front()) / static_cast<double>(n);
  }
  double squares = 0;
  for (const double value : without) squares += (value - without.front() - mean) * (value - without.front() - mean);
  const double error = std::sqrt(squares * static_cast<double>(n - 1) / static_cast<double>(n));
  if (std::isfinite(error)) estimate.standard_error = error;
  return estimate;
}

QualityFigures quality_figures(std::span<const WindowSums> windows, std::span<const WindowSums> baseline, int64_t ctx) {
  const int64_t n = std::ssize(windows);
  HEARTH_CHECK(n > 0 && (baseline.empty() || std::ssize(baseline) == n), "{} windows, {} of the baseline", n,
               baseline.size());
  const auto tokens = static_cast<double>(ctx);
  const Column nll(windows, [&](const WindowSums& w) { return w.nll / tokens; });
  const Column reference(windows, [&](const WindowSums& w) { return w.nll_reference / tokens; });
  const Column kl(windows, [&](const WindowSums& w) { return w.kl / tokens; });
  const Column same(windows, [&](const WindowSums& w) { return static_cast<double>(w.same_top) / tokens; });
  const auto rise = [&](const Column& c, int64_t i) { return std::exp(c.mean(i)) - std::exp(reference.mean(i)); };
  QualityFigures figures{.nll = jackknife(n, [&](int64_t i) { return nll.mean(i); }),
                         .ppl = jackknife(n, [&](int64_t i) { return std::exp(nll.mean(i)); }),
                         .ppl_rise = jackknife(n, [&](int64_t i) { return rise(nll, i); }),
                         .kl = jackknife(n, [&](int64_t i) { return kl.mean(i); }),
                         .same_top = jackknife(n, [&](int64_t i) { return same.mean(i); }),
                         .kl_max = 0,
                         .rise_share = std::nullopt,
                         .kl_share = std::nullopt};
  for (const WindowSums& w : windows) figures.kl_max = std::max(figures.kl_max, w.kl_max);
  if (baseline.empty()) return figures;
  const Column base_nll(baseline, [&](const WindowSums& w) { return w.nll / tokens; });
  const Column base_kl(baseline, [&](const WindowSums& w) { return w.kl / tokens; });
  figures.rise_share = jackknife(n, [&](int64_t i) { return rise(nll, i) / rise(base_nll, i); });
  figures.kl_share = jackknife(n, [&](int64_t i) { return kl.mean(i) / base_kl.mean(i); });
  return figures;
}

LambadaFigures lambada_figures(std::span<const LambadaScore> model, std::span<const LambadaScore> reference) {
  const int64_t n = std::ssize(model);
  HEARTH_CHECK(n > 0 && std::ssize(reference) == n, "{} items, {} of the reference", n, reference.size());
  const auto hit = [](const LambadaScore& s) { return s.hit ? 1.0 : 0.0; };
  const Column hits(model, hit), reference_hits(reference, hit);
  const Column nll(model, [](const LambadaScore& s) { return -s.logprob; });
  return {.acc = jackknife(n, [&](int64_t i) { return hits.mean(i); }),
          .acc_change = jackknife(n, [&](int64_t i) { return hits.mean(i) - reference_hits.mean(i); }),
          .nll_per_word = jackknife(n, [&](int64_t i) { return nll.mean(i); })};
}

SpeedFigures speed_figures(std::span<const double> seconds, std::span<const double> baseline, int64_t tokens) {
  const int64_t n = std::ssize(seconds);
  HEARTH_CHECK(n > 0 && (baseline.empty() || std::ssize(baseline) == n), "{} repetitions, {} of the baseline", n,
               baseline.size());
  const auto same = [](double s) { return s; };
  const Column time(seconds, same), base(baseline, same);
  const auto count = static_cast<double>(tokens);
  SpeedFigures figures{.tokens_per_s = jackknife(n, [&](int64_t i) { return count / time.mean(i); }),
                       .ratio = std::nullopt};
  if (!baseline.empty()) figures.ratio = jackknife(n, [&](int64_t i) { return base.mean(i) / time.mean(i); });
  return figures;
}

}  // namespace hearth
