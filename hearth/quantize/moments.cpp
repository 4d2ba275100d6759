// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/moments.h"

#include <algorithm>
#include <cmath>

namespace hearth {

SecondMoments::SecondMoments(int64_t k)
    : k_(k), h_(static_cast<size_t>(k * k)), sum_abs_(static_cast<size_t>(k)), max_abs_(static_cast<size_t>(k)) {}

Status SecondMoments::add(std::span<const float> x, Compute& compute) {
  const auto size = static_cast<int64_t>(x.size());
  if (k_ == 0 || size % k_ != 0)
    return invalid_argument("second moments: {} activations are no whole tokens of {} channels", size, k_);
  const int64_t tokens = size / k_;
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(x[static_cast<size_t>(i)]))
      return invalid_argument("second moments: activation {} of token {}, channel {} is not finite",
                              x[static_cast<size_t>(i)], tokens_ + i / k_, i % k_);
  }
  HEARTH_TRY(compute.add_second_moments(x.data(), tokens, k_, h_.data()));
  compute.pool().parallel_for(k_, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = 0; token < tokens; ++token) {
      const float* row = x.data() + token * k_;
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const float magnitude = std::abs(row[i]);
        sum_abs_[at] += magnitude;
        max_abs_[at] = std::max(max_abs_[at], magnitude);
      }
    }
  });
  tokens_ += tokens;
  return {};
}

double SecondMoments::mean_abs(int64_t i) const {
  return tokens_ == 0 ? 0.0 : sum_abs_[static_cast<size_t>(i)] / static_cast<double>(tokens_);
}

SecondMoments SecondMoments::scaled(std::span<const float> factors) const {
  HEARTH_CHECK(static_cast<int64_t>(factors.size()) == k_, "{} factors for {} channels", factors.size(), k_);
  SecondMoments result = *this;
  for (int64_t i = 0; i < k_; ++i) {
    const double factor = factors[static_cast<size_t>(i)];
    double* row = result.h_.data() + i * k_;
    for (int64_t j = i; j < k_; ++j) row[j] *= factor * static_cast<double>(factors[static_cast<size_t>(j)]);
    result.sum_abs_[static_cast<size_t>(i)] *= std::abs(factor);
    result.max_abs_[static_cast<size_t>(i)] *= static_cast<float>(std::abs(factor));
  }
  return result;
}

}  // namespace hearth
