// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/moments.h"

#include <cmath>

namespace hearth {

SecondMoments::SecondMoments(int64_t k)
    : k_(k), h_(static_cast<size_t>(k * k)), sum_abs_(static_cast<size_t>(k)), max_abs_(static_cast<size_t>(k)) {}

Status SecondMoments::add(std::span<const float> x, Compute& compute) {
  const auto size = static_cast<int64_t>(x.size());
  if (k_ == 0 || size % k_ != 0)
    return invalid_argument("second moments: {} activations are no whole tokens of {} channels", size, k_);
  const ConstTensorView values(x.data(), DType::kF32, {size / k_, k_});
  ExecContext exec{.pool = &compute.pool()};
  uint64_t bad = NonFinite::kNone;
  HEARTH_TRY(cpu_ops().non_finite({.x = values, .first = &bad}, exec));
  if (bad != NonFinite::kNone)
    return invalid_argument("second moments: activation {} of token {}, channel {} is not finite",
                            NonFinite::value(bad), tokens_ + NonFinite::index(bad) / k_, NonFinite::index(bad) % k_);
  HEARTH_TRY(cpu_ops().second_moments({.x = values,
                                       .sums = TensorView(h_.data(), DType::kF64, {k_, k_}),
                                       .sum_abs = TensorView(sum_abs_.data(), DType::kF64, Shape{k_}),
                                       .max_abs = TensorView(max_abs_.data(), DType::kF32, Shape{k_}),
                                       .add = true},
                                      exec));
  tokens_ += values.rows();
  return {};
}

double SecondMoments::mean_abs(int64_t i) const {
  return tokens_ == 0 ? 0.0 : sum_abs_[static_cast<size_t>(i)] / static_cast<double>(tokens_);
}

void SecondMoments::scale(std::span<const float> factors) {
  HEARTH_CHECK(static_cast<int64_t>(factors.size()) == k_, "{} factors for {} channels", factors.size(), k_);
  for (int64_t i = 0; i < k_; ++i) {
    const double factor = factors[static_cast<size_t>(i)];
    double* row = h_.data() + i * k_;
    for (int64_t j = i; j < k_; ++j) row[j] *= factor * static_cast<double>(factors[static_cast<size_t>(j)]);
    sum_abs_[static_cast<size_t>(i)] *= std::abs(factor);
    max_abs_[static_cast<size_t>(i)] *= static_cast<float>(std::abs(factor));
  }
}

SecondMoments SecondMoments::scaled(std::span<const float> factors) const {
  SecondMoments result = *this;
  result.scale(factors);
  return result;
}

Result<MomentSums> MomentSums::create(const OpTable& ops, int64_t k) {
  MomentSums out;
  out.ops_ = &ops;
  out.moments_ = SecondMoments(k);
  void *sums = out.moments_.h_.data(), *sum_abs = out.moments_.sum_abs_.data(), *max_abs = out.moments_.max_abs_.data();
  if (!ops.memory().is_host()) {
    const int64_t matrix = dtype_bytes(DType::kF64, k * k), vector = dtype_bytes(DType::kF64, k);
    HEARTH_TRY_ASSIGN(out.buffer_, ops.memory().allocate(matrix + 2 * vector).with_context("second moments"));
    sums = out.buffer_.data();
    sum_abs = out.buffer_.data() + matrix;
    max_abs = out.buffer_.data() + matrix + vector;
  }
  out.sums_ = TensorView(sums, DType::kF64, {k, k});
  out.sum_abs_ = TensorView(sum_abs, DType::kF64, Shape{k});
  out.max_abs_ = TensorView(max_abs, DType::kF32, Shape{k});
  return out;
}

Status MomentSums::add(const ConstTensorView& x, ExecContext& exec) {
  HEARTH_TRY(ops_->second_moments(
      {.x = x, .sums = sums_, .sum_abs = sum_abs_, .max_abs = max_abs_, .add = moments_.tokens_ > 0}, exec));
  moments_.tokens_ += x.rows();
  return {};
}

Result<SecondMoments> MomentSums::read(Queue& queue) {
  if (buffer_.size_bytes() > 0 && moments_.tokens_ > 0) {
    const auto copy = [&](auto& to, const TensorView& from) {
      return queue.copy_out(std::as_writable_bytes(std::span(to)), static_cast<const std::byte*>(from.data));
    };
    HEARTH_TRY(copy(moments_.h_, sums_));
    HEARTH_TRY(copy(moments_.sum_abs_, sum_abs_));
    HEARTH_TRY(copy(moments_.max_abs_, max_abs_));
  }
  HEARTH_TRY(queue.synchronize());
  buffer_ = Buffer();
  return std::move(moments_);
}

}  // namespace hearth
