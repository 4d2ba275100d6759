// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/site_loss.h"

#include <algorithm>
#include <cmath>

namespace hearth {
namespace {

// Rows of a matrix that stand for all, evenly spaced.
constexpr int64_t kJudgedRows = 128;
// Expected square of the largest of a group's values, in squares of the largest root mean square among its channels;
// 7.3 for 128 normal values, and activations have heavier tails.
constexpr double kPeakSquare = 9;
constexpr double kInt8Steps = 127;

EncodeOptions judging_options(const EncodeOptions& wanted) {
  EncodeOptions options = wanted;
  if (wanted.format.code == WeightCode::kBitvectors)
    options.format = {.code = WeightCode::kI4SignMagnitude,
                      .scale_layout = ScaleLayout::kGroup,
                      .scale_dtype = DType::kF16,
                      .group_k = wanted.format.group_k};
  if (wanted.method == EncodeMethod::kAuthors) options.method = EncodeMethod::kNearest;
  options.order = ColumnOrder::kStored;
  options.sweeps = 0;
  return options;
}

// D H D for a diagonal D, and what is computed from it.
void scale_model(const InputModel& from, std::span<const float> d, InputModel& to, ThreadPool& pool) {
  pool.parallel_for(from.k, 16, [&](int64_t begin, int64_t end, int) {
    const auto k = static_cast<size_t>(from.k);
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      for (size_t j = 0; j < k; ++j) to.h[i * k + j] = from.h[i * k + j] * d[i] * d[j];
      to.weight[i] = from.weight[i] * d[i] * d[i];
      if (from.factor.empty()) continue;
      // (D H D)^-1 = (U D^-1)^T (U D^-1).
      for (size_t j = 0; j < k; ++j) to.factor[i * k + j] = from.factor[i * k + j] / d[j];
    }
  });
  // D H D = (D M) (D M)^T.
  for (size_t block = 0; block < from.group_factor.size(); ++block) {
    const std::vector<float>& m = from.group_factor[block];
    const auto begin = static_cast<size_t>(from.blocks[block].begin);
    const size_t width = static_cast<size_t>(from.blocks[block].end) - begin;
    for (size_t i = 0; i < m.size(); ++i) to.group_factor[block][i] = m[i] * d[begin + i % width];
  }
}

// Errors of INT8 activations, by group, through the rows `w`.
double activation_loss(const std::vector<float>& w, int64_t rows, int64_t k, int64_t group, std::span<const float> d) {
  double loss = 0;
  for (int64_t begin = 0; begin < k; begin += group) {
    const int64_t end = std::min(k, begin + group);
    double peak = 0, weights = 0;
    for (int64_t j = begin; j < end; ++j) {
      const double size = d[static_cast<size_t>(j)];
      peak = std::max(peak, size * size);
      for (int64_t r = 0; r < rows; ++r) {
        const double x = w[static_cast<size_t>(r * k + j)];
        weights += x * x;
      }
    }
    loss += kPeakSquare * peak / (12 * kInt8Steps * kInt8Steps) * weights;
  }
  return loss;
}

}  // namespace

SiteLoss::SiteLoss(const SecondMoments& moments, Compute& compute) : compute_(compute) {
  std::vector<float> inverse(static_cast<size_t>(moments.k()), 1.0f);
  const double tokens = static_cast<double>(std::max<int64_t>(1, moments.tokens()));
  for (int64_t i = 0; i < moments.k(); ++i) {
    const double rms = std::sqrt(moments.diagonal(i) / tokens);
    rms_.push_back(rms);
    if (rms > 0) inverse[static_cast<size_t>(i)] = static_cast<float>(1 / rms);
  }
  even_ = moments.scaled(inverse);
}

Result<SiteLoss::Judge*> SiteLoss::judge_of(const EncodeOptions& options) {
  const int64_t k = even_.k();
  const int64_t group = options.format.scale_layout == ScaleLayout::kRow ? k : options.format.group_k;
  const auto [at, is_new] = judges_.try_emplace({group, options.method});
  Judge& judge = at->second;
  if (is_new) {
    EncodeOptions informed = options;
    if (informed.method == EncodeMethod::kNearest) informed.method = EncodeMethod::kClip;
    HEARTH_TRY_ASSIGN(judge.even, make_input_model(k, group, &even_, informed, compute_));
    if (judge.even.h.empty()) judge.even.h.resize(static_cast<size_t>(k * k));  // no token had a value
    if (options.method == EncodeMethod::kNearest) judge.even.group_factor.clear();
    judge.scaled = judge.even;
  }
  return &judge;
}

Result<double> SiteLoss::operator()(const LayerLinear& linear, std::span<const float> factors,
                                    const EncodeOptions& wanted) {
  const int64_t k = even_.k(), rows = std::min(kJudgedRows, linear.n);
  const EncodeOptions options = judging_options(wanted);
  HEARTH_TRY_ASSIGN(Judge* const judge, judge_of(options));
  std::vector<float> d(static_cast<size_t>(k));
  for (size_t i = 0; i < d.size(); ++i)
    d[i] = rms_[i] > 0 ? static_cast<float>(rms_[i] * static_cast<double>(factors[i])) : factors[i];
  scale_model(judge->even, d, judge->scaled, compute_.pool());
  std::vector<float> w;
  for (int64_t r = 0; r < rows; ++r) {
    const std::span<const float> row = linear.row(r * linear.n / rows);
    w.insert(w.end(), row.begin(), row.end());
  }
  HEARTH_TRY_ASSIGN(double loss, encoding_loss(w, rows, judge->scaled, options, compute_));
  if (wanted.format.act == ActFormat::kI8PerGroup) loss += activation_loss(w, rows, k, wanted.format.group_k, d);
  return loss * static_cast<double>(linear.n) / static_cast<double>(rows);
}

}  // namespace hearth
