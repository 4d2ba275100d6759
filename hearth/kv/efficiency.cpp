// SPDX-License-Identifier: Apache-2.0
// Weighted mean and covariance, one window at a time (West, "Updating mean and variance estimates: an improved method",
// CACM 1979).
#include "hearth/kv/efficiency.h"

#include <algorithm>

namespace hearth {
namespace {

constexpr double kForget = 0.9;
// Bytes that vary by less than this part of their mean show no slope, only noise.
constexpr double kLeastVariation = 0.05;

}  // namespace

void MemoryEfficiency::served(int64_t tokens, int64_t live_bytes) {
  tokens_ += static_cast<double>(tokens);
  bytes_ += static_cast<double>(live_bytes);
  ++samples_;
}

void MemoryEfficiency::end_window() {
  const double bytes = samples_ > 0 ? bytes_ / samples_ : 0;
  const double before = kForget * weight_;
  weight_ = before + 1;
  const double from_bytes = bytes - mean_bytes_, from_tokens = tokens_ - mean_tokens_;
  mean_bytes_ += from_bytes / weight_;
  mean_tokens_ += from_tokens / weight_;
  // Sums of squares and products, not yet divided by the weight.
  bytes_variance_ = kForget * bytes_variance_ + before / weight_ * from_bytes * from_bytes;
  covariance_ = kForget * covariance_ + before / weight_ * from_bytes * from_tokens;
  tokens_ = bytes_ = samples_ = 0;
}

double MemoryEfficiency::tokens_per_byte() const {
  if (mean_bytes_ <= 0) return prior_;
  const double least = kLeastVariation * mean_bytes_;
  if (bytes_variance_ < least * least * weight_) return mean_tokens_ / mean_bytes_;
  return std::max(0.0, covariance_ / bytes_variance_);
}

}  // namespace hearth
