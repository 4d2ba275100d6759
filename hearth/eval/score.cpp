// SPDX-License-Identifier: Apache-2.0
// Two passes over a row: the maximum, then the sum of exponentials. Threads take whole rows.
#include "hearth/eval/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/eval/score.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements that a lane adds in f32 before the sum goes on in f64.
constexpr int64_t kLaneSteps = 64;

// The largest element, NaN where any is NaN (Exp takes NaN for 0, and would hide it).
float row_max(const float* x, int64_t n) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto max0 = hn::Set(d, x[0]), max1 = max0;
  auto nan = hn::IsNaN(max0);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + lanes);
    max0 = hn::Max(max0, a);
    max1 = hn::Max(max1, b);
    nan = hn::Or(nan, hn::Or(hn::IsNaN(a), hn::IsNaN(b)));
  }
  float max = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  bool any_nan = !hn::AllFalse(d, nan);
  for (; i < n; ++i) {
    max = std::max(max, x[i]);
    any_nan = any_nan || std::isnan(x[i]);
  }
  return any_nan ? std::numeric_limits<float>::quiet_NaN() : max;
}

// sum exp(x - max)
double exp_sum(const float* x, int64_t n, float max) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, max);
  double total = 0;
  int64_t i = 0;
  while (i + lanes <= n) {
    auto s0 = hn::Zero(d), s1 = s0;
    const int64_t end = std::min(n, i + kLaneSteps * lanes);
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      s0 = hn::Add(s0, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), shift)));
      s1 = hn::Add(s1, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i + lanes), shift)));
    }
    for (; i + lanes <= end; i += lanes) s0 = hn::Add(s0, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), shift)));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1))));
  }
  for (; i < n; ++i) total += static_cast<double>(std::exp(x[i] - max));
  return total;
}

// Adds sum exp(p - max_p) to `z` and sum exp(p - max_p) ((p - max_p) - (q - max_q)) to `weighted`.
void cross_sums(const float* p, const float* q, int64_t n, float max_p, float max_q, double& z, double& weighted) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift_p = hn::Set(d, max_p), shift_q = hn::Set(d, max_q);
  int64_t i = 0;
  while (i + lanes <= n) {
    auto sum = hn::Zero(d), cross = sum;
    const int64_t end = std::min(n, i + kLaneSteps * lanes);
    for (; i + lanes <= end; i += lanes) {
      const auto a = hn::Sub(hn::LoadU(d, p + i), shift_p), b = hn::Sub(hn::LoadU(d, q + i), shift_q);
      const auto e = hn::Exp(d, a);
      sum = hn::Add(sum, e);
      cross = hn::MulAdd(e, hn::Sub(a, b), cross);
    }
    z += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
    weighted += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, cross)));
  }
  for (; i < n; ++i) {
    const float a = p[i] - max_p, b = q[i] - max_q, e = std::exp(a);
    z += static_cast<double>(e);
    weighted += static_cast<double>(e) * static_cast<double>(a - b);
  }
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(row_max);
HWY_EXPORT(exp_sum);
HWY_EXPORT(cross_sums);

namespace {

int32_t first_of(const float* x, int64_t n, float value) {
  return static_cast<int32_t>(std::find(x, x + n, value) - x);
}

}  // namespace

Status score_rows(ConstTensorView logits, std::span<const int32_t> targets, std::span<TokenScore> out,
                  ThreadPool& pool) {
  const int64_t rows = logits.rows(), vocab = logits.cols();
  HEARTH_CHECK(std::ssize(targets) == rows && std::ssize(out) == rows, "{} rows of logits, {} targets, {} results",
               rows, targets.size(), out.size());
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = logits.row<float>(r);
      const float max = HWY_DYNAMIC_DISPATCH(row_max)(x, vocab);
      const double sum = HWY_DYNAMIC_DISPATCH(exp_sum)(x, vocab, max);
      const auto i = static_cast<size_t>(r);
      out[i].logprob = static_cast<double>(x[targets[i]]) - static_cast<double>(max) - std::log(sum);
      out[i].top = first_of(x, vocab, max);
    }
  });
  for (int64_t r = 0; r < rows; ++r)
    if (const double logprob = out[static_cast<size_t>(r)].logprob; !std::isfinite(logprob))
      return internal_error("log probability {} in row {} of the logits: the model is broken", logprob, r);
  return {};
}

Status divergence_rows(ConstTensorView p, ConstTensorView q, std::span<RowDivergence> out, ThreadPool& pool) {
  const int64_t rows = p.rows(), vocab = p.cols();
  HEARTH_CHECK(q.rows() == rows && q.cols() == vocab && std::ssize(out) == rows, "rows {} and {}, columns {} and {}",
               rows, q.rows(), vocab, q.cols());
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float *a = p.row<float>(r), *b = q.row<float>(r);
      const float max_a = HWY_DYNAMIC_DISPATCH(row_max)(a, vocab), max_b = HWY_DYNAMIC_DISPATCH(row_max)(b, vocab);
      double z_a = 0, weighted = 0;
      HWY_DYNAMIC_DISPATCH(cross_sums)(a, b, vocab, max_a, max_b, z_a, weighted);
      // The same sum, in the same order, for both: equal rows give exactly 0.
      double z_b = 0, unused = 0;
      HWY_DYNAMIC_DISPATCH(cross_sums)(b, b, vocab, max_b, max_b, z_b, unused);
      RowDivergence& row = out[static_cast<size_t>(r)];
      row.kl = weighted / z_a - std::log(z_a) + std::log(z_b);
      row.same_top = first_of(a, vocab, max_a) == first_of(b, vocab, max_b);
    }
  });
  for (int64_t r = 0; r < rows; ++r)
    if (const double kl = out[static_cast<size_t>(r)].kl; !std::isfinite(kl))
      return internal_error("divergence {} in row {} of the logits: a model is broken", kl, r);
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
