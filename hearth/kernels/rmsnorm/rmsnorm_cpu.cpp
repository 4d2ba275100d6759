// SPDX-License-Identifier: Apache-2.0
// rmsnorm with Highway: two passes over a row, the second from the first-level cache. The sum of squares
// runs in four vector accumulators that are added in a fixed order, so that a row's result is its own.
// Threads take whole rows.
#include "hearth/kernels/rmsnorm/rmsnorm.h"

#include <cmath>
#include <type_traits>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/rmsnorm/rmsnorm_cpu.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

// sum = x + residual, stored where there is a residual; returns the sum of its squares.
template <class T>
float sum_of_squares(const T* x, T* residual, int64_t hidden) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto load = [&](auto tag, int64_t i) HWY_ATTR {
    auto v = load_f32(tag, x + i);
    if (residual == nullptr) return v;
    v = hn::Add(v, load_f32(tag, residual + i));
    if constexpr (std::is_same_v<T, bf16>) v = round_to_bf16(tag, v);
    store_f32(tag, v, residual + i);
    return v;
  };
  FloatVec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= hidden; i += 4 * lanes) {
    const FloatVec a = load(d, i), b = load(d, i + lanes), c = load(d, i + 2 * lanes), e = load(d, i + 3 * lanes);
    s0 = hn::MulAdd(a, a, s0), s1 = hn::MulAdd(b, b, s1), s2 = hn::MulAdd(c, c, s2), s3 = hn::MulAdd(e, e, s3);
  }
  for (; i + lanes <= hidden; i += lanes) {
    const FloatVec a = load(d, i);
    s0 = hn::MulAdd(a, a, s0);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < hidden; ++i) {
    const float a = hn::GetLane(load(hn::CappedTag<float, 1>(), i));
    squares += a * a;
  }
  return squares;
}

template <class T, class W>
void rmsnorm_rows(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const int64_t hidden = args.x.cols();
  const W* weight = args.weight.row<W>(0);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = args.x.row<T>(r);
    T* residual = args.residual ? args.residual.row<T>(r) : nullptr;
    const float squares = sum_of_squares(x, residual, hidden);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(hidden) + args.eps);
    const T* sum = residual ? residual : x;
    T* out = args.out.row<T>(r);
    for_channels(hidden, [&](auto d, int64_t i) HWY_ATTR {
      const auto scaled = hn::Mul(load_f32(d, sum + i), hn::Set(d, scale));
      store_f32(d, hn::Mul(scaled, load_f32(d, weight + i)), out + i);
    });
  }
}

void rmsnorm_range(const RmsNormArgs& args, int64_t begin, int64_t end) {
  const bool weight_f32 = args.weight.dtype == DType::kF32;
  if (args.x.dtype == DType::kF32) {
    weight_f32 ? rmsnorm_rows<float, float>(args, begin, end) : rmsnorm_rows<float, bf16>(args, begin, end);
  } else {
    weight_f32 ? rmsnorm_rows<bf16, float>(args, begin, end) : rmsnorm_rows<bf16, bf16>(args, begin, end);
  }
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(rmsnorm_range);

Status rmsnorm_cpu(const RmsNormArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.rounded) return unsupported("rmsnorm: rounded rows on the CPU; its linears round what they read");
  cpu::parallel_items(exec, args.x.rows(), args.x.cols(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rmsnorm_range)(args, begin, end);
  });
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
