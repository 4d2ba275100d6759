// SPDX-License-Identifier: Apache-2.0
// The search for the best coefficient lines of a group. With values v_0 <= v_1 <= ... of a line and middles m_i between
// them, the error of nearest rounding is
//   sum d (x - v_0)^2 - 2 sum_i (v_{i+1} - v_i) T(m_i),   T(m) = sum over x > m of d (x - m),
// and T is one convex function of the group, however many lines there are: it is tabulated once per row, so that a
// line costs 15 look-ups instead of 15 comparisons per weight. Lanes are lines.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "hearth/quantize/group_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/quantize/assign_cpu.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

// What all instruction sets share.
#ifndef HEARTH_QUANTIZE_ASSIGN_CPU_SHARED_
#define HEARTH_QUANTIZE_ASSIGN_CPU_SHARED_
namespace hearth::assign {

inline constexpr int kKnots = 256;

// T of one row at knots low + i / inverse_step, i in [0, kKnots], and the sums of the whole row.
struct RowTable {
  std::array<float, kKnots + 2> tail;
  float low = 0, inverse_step = 0;
  float weight_sum = 0, sum = 0, square_sum = 0;

  void build(const AssignArgs& args, int64_t row) {
    float high = -HUGE_VALF;
    low = HUGE_VALF;
    weight_sum = sum = square_sum = 0;
    for (int64_t c = 0; c < args.columns; ++c) {
      const float x = args.w[c * args.rows + row], d = args.weight[c];
      low = std::min(low, x);
      high = std::max(high, x);
      weight_sum += d;
      sum += d * x;
      square_sum += d * x * x;
    }
    const float step = std::max((high - low) / kKnots, 1e-30f);
    inverse_step = 1 / step;
    // Weight and moment of what lies in (knot i - 1, knot i], then tails from above.
    std::array<float, kKnots + 2> of_bin{}, moment{};
    for (int64_t c = 0; c < args.columns; ++c) {
      const float x = args.w[c * args.rows + row];
      const auto bin = static_cast<size_t>(std::clamp(std::ceil((x - low) * inverse_step), 0.0f, float{kKnots}));
      of_bin[bin] += args.weight[c];
      moment[bin] += args.weight[c] * x;
    }
    float weight_above = 0, moment_above = 0;
    for (int i = kKnots; i >= 0; --i) {
      const auto at = static_cast<size_t>(i);
      tail[at] = std::max(0.0f, moment_above - weight_above * (low + static_cast<float>(i) * step));
      weight_above += of_bin[at];
      moment_above += moment[at];
    }
    tail[kKnots] = tail[kKnots + 1] = 0;
  }
};

// The `count` least errors so far, ascending.
struct Least {
  static constexpr int64_t kMost = 16;
  std::array<float, kMost> error;
  std::array<uint16_t, kMost> line;
  int64_t count;
  explicit Least(int64_t count_in) : count(count_in) {
    error.fill(HUGE_VALF);
    line.fill(0);
  }
  float worst() const { return error[static_cast<size_t>(count - 1)]; }
  void offer(float other, uint16_t other_line) {
    if (!(other < worst())) return;
    auto at = static_cast<size_t>(count - 1);
    for (; at > 0 && error[at - 1] > other; --at) {
      error[at] = error[at - 1];
      line[at] = line[at - 1];
    }
    error[at] = other;
    line[at] = other_line;
  }
};

// Lines whose size lies in a range around what a row of this spread takes: a line's values reach from about 0.55 to
// 1.25 times the row's own extremes, or it is not among the best.
inline constexpr float kSmallestShare = 0.55f, kLargestShare = 1.3f;
inline constexpr int64_t kFewestLines = 64;

}  // namespace hearth::assign
#endif

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace as = assign;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());

// Errors of the lines [first, first + kLanes) of the table.
HWY_INLINE V errors_of(const LineTable& table, int64_t first, const as::RowTable& row) {
  const hn::RebindToSigned<D> di;
  const V low = hn::Set(D(), row.low), inverse_step = hn::Set(D(), row.inverse_step);
  const V weight_sum = hn::Set(D(), row.weight_sum), most = hn::Set(D(), float{as::kKnots}), zero = hn::Zero(D());
  V gain = zero;
  for (int64_t i = 0; i + 1 < table.count; ++i) {
    const V middle = hn::LoadU(D(), table.middle.data() + i * table.lines + first);
    const V place = hn::Mul(hn::Sub(middle, low), inverse_step);
    const V inside = hn::Min(hn::Max(place, zero), most);
    const auto knot = hn::ConvertTo(di, inside);
    const V below = hn::GatherIndex(D(), row.tail.data(), knot),
            above = hn::GatherIndex(D(), row.tail.data() + 1, knot);
    const V between = hn::Sub(inside, hn::ConvertTo(D(), knot));
    V tail = hn::MulAdd(between, hn::Sub(above, below), below);
    tail = hn::MulAdd(hn::Max(hn::Sub(low, middle), zero), weight_sum, tail);  // T is linear below the least x
    gain = hn::MulAdd(hn::LoadU(D(), table.step.data() + i * table.lines + first), tail, gain);
  }
  const V smallest = hn::LoadU(D(), table.smallest.data() + first);
  const V start =
      hn::MulAdd(smallest, hn::MulSub(smallest, weight_sum, hn::Set(D(), 2 * row.sum)), hn::Set(D(), row.square_sum));
  return hn::Sub(start, hn::Add(gain, gain));
}

void assign_row(const AssignArgs& args, int64_t row) {
  const LineTable& table = *args.table;
  as::RowTable of_row;
  of_row.build(args, row);
  const float width = static_cast<float>(as::kKnots) / of_row.inverse_step;
  int64_t begin = std::ranges::lower_bound(table.size, as::kSmallestShare * width) - table.size.begin();
  int64_t end = std::ranges::upper_bound(table.size, as::kLargestShare * width) - table.size.begin();
  begin = std::max<int64_t>(0, std::min(begin, end - as::kFewestLines));
  end = std::min(table.lines, std::max(end, begin + as::kFewestLines));
  begin = std::max<int64_t>(0, std::min(begin, end - as::kFewestLines));
  as::Least least(args.candidates);
  HWY_ALIGN float errors[kLanes];
  for (int64_t first = begin / kLanes * kLanes; first < end; first += kLanes) {
    const V error = errors_of(table, first, of_row);
    if (hn::AllFalse(D(), hn::Lt(error, hn::Set(D(), least.worst())))) continue;
    hn::Store(error, D(), errors);
    for (int64_t i = 0; i < kLanes; ++i) least.offer(errors[i], table.line[static_cast<size_t>(first + i)]);
  }
  for (int64_t i = 0; i < args.candidates; ++i) {
    const bool found = least.error[static_cast<size_t>(i)] < HUGE_VALF;
    args.lines[i * args.rows + row] = least.line[static_cast<size_t>(found ? i : 0)];
  }
}

void assign_lines(const AssignArgs& args, int64_t row) {
  for (int64_t i = 0; i < kRowTile; ++i) assign_row(args, row + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {
HWY_EXPORT(assign_lines);
}  // namespace

void assign_lines_tile(const AssignArgs& args, int64_t row) {
  HEARTH_CHECK(args.candidates >= 1 && args.candidates <= assign::Least::kMost, "{} candidate lines", args.candidates);
  HWY_DYNAMIC_DISPATCH(assign_lines)(args, row);
}

}  // namespace hearth
#endif  // HWY_ONCE
