// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/awq.h"

#include <algorithm>
#include <cmath>

namespace hearth {
namespace {

// Rows of a matrix that judge candidates.
struct Sample {
  std::vector<float> w;  // [rows][k]
  int64_t rows = 0;
};

Sample sample_rows(const AwqMatrix& matrix, int64_t k, int64_t max_rows) {
  Sample sample;
  sample.rows = std::min(matrix.n, std::max<int64_t>(1, max_rows));
  for (int64_t i = 0; i < sample.rows; ++i) {
    const float* row = matrix.w.data() + i * matrix.n / sample.rows * k;
    sample.w.insert(sample.w.end(), row, row + k);
  }
  return sample;
}

// mean over rows of |w| / max |w| of the group.
std::vector<double> mean_shares(const std::vector<Sample>& samples, int64_t k, int64_t group) {
  std::vector<double> shares(static_cast<size_t>(k));
  int64_t rows = 0;
  for (const Sample& sample : samples) {
    rows += sample.rows;
    for (int64_t row = 0; row < sample.rows; ++row) {
      const float* w = sample.w.data() + row * k;
      for (int64_t begin = 0; begin < k; begin += group) {
        const int64_t end = std::min(k, begin + group);
        float widest = 0;
        for (int64_t j = begin; j < end; ++j) widest = std::max(widest, std::abs(w[j]));
        if (widest == 0) continue;
        for (int64_t j = begin; j < end; ++j)
          shares[static_cast<size_t>(j)] += static_cast<double>(std::abs(w[j]) / widest);
      }
    }
  }
  for (double& share : shares) share /= static_cast<double>(rows);
  return shares;
}

// Scales for one exponent; channels that no token uses get 1.
std::vector<float> candidate(const SecondMoments& moments, const std::vector<double>& shares, double exponent,
                             bool duo) {
  const int64_t k = moments.k();
  std::vector<float> scales(static_cast<size_t>(k), 1.0f);
  std::vector<double> raw(static_cast<size_t>(k));
  double least = HUGE_VAL, most = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto at = static_cast<size_t>(i);
    if (moments.mean_abs(i) == 0) continue;
    raw[at] = std::pow(moments.mean_abs(i), exponent);
    if (duo) raw[at] /= std::pow(shares[at], 1 - exponent) + 1e-4;
    raw[at] = std::max(raw[at], 1e-4);
    least = std::min(least, raw[at]);
    most = std::max(most, raw[at]);
  }
  for (size_t i = 0; i < raw.size(); ++i)
    if (raw[i] > 0) scales[i] = static_cast<float>(raw[i] / std::sqrt(least * most));
  return scales;
}

Result<double> loss_of(const std::vector<Sample>& samples, const SecondMoments& moments,
                       const std::vector<float>& scales, const EncodeOptions& options, Compute& compute) {
  const int64_t k = moments.k();
  std::vector<float> inverse(scales.size());
  std::ranges::transform(scales, inverse.begin(), [](float scale) { return 1 / scale; });
  const SecondMoments scaled = moments.scaled(inverse);
  double loss = 0;
  for (const Sample& sample : samples) {
    std::vector<float> w(sample.w.size());
    for (size_t i = 0; i < w.size(); ++i) w[i] = sample.w[i] * scales[i % static_cast<size_t>(k)];
    EncodeReport report;
    HEARTH_TRY(encode(w, sample.rows, k, &scaled, options, compute, &report));
    loss += report.proxy_loss;
  }
  return loss;
}

}  // namespace

Result<AwqScales> search_awq_scales(std::span<const AwqMatrix> matrices, const SecondMoments& moments,
                                    const AwqOptions& options, Compute& compute) {
  const int64_t k = moments.k();
  if (moments.tokens() == 0) return invalid_argument("AWQ: no second moments of the input");
  if (matrices.empty() || options.grid < 1)
    return invalid_argument("AWQ: {} matrices and a grid of {}, wanted at least 1 of each", matrices.size(),
                            options.grid);
  std::vector<Sample> samples;
  for (const AwqMatrix& matrix : matrices) {
    if (matrix.n <= 0 || static_cast<int64_t>(matrix.w.size()) != matrix.n * k)
      return invalid_argument("AWQ: {} values for a weight [{}, {}]", matrix.w.size(), matrix.n, k);
    samples.push_back(sample_rows(matrix, k, options.max_rows));
  }
  const int64_t group = options.encode.format.group_k > 0 ? options.encode.format.group_k : k;
  const std::vector<double> shares = options.duo_scaling ? mean_shares(samples, k, group) : std::vector<double>();

  AwqScales best;
  best.scales.assign(static_cast<size_t>(k), 1.0f);
  HEARTH_TRY_ASSIGN(best.plain_loss, loss_of(samples, moments, best.scales, options.encode, compute));
  best.loss = best.plain_loss;
  for (const bool duo : {false, true}) {
    if (duo && !options.duo_scaling) continue;
    for (int i = duo ? 0 : 1; i <= options.grid; ++i) {
      const double exponent = static_cast<double>(i) / options.grid;
      std::vector<float> scales = candidate(moments, shares, exponent, duo);
      HEARTH_TRY_ASSIGN(const double loss, loss_of(samples, moments, scales, options.encode, compute));
      if (loss >= best.loss) continue;
      best.scales = std::move(scales);
      best.exponent = exponent;
      best.duo = duo;
      best.loss = loss;
    }
  }
  return best;
}

}  // namespace hearth
