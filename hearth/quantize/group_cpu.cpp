// SPDX-License-Identifier: Apache-2.0
// The loops over one group of columns: scale search, rounding with error feedback, coordinate descent. Lanes are rows.
//   I1. A row's result depends on that row alone (and on the instruction set, by its fused multiply-adds).
#include "hearth/quantize/group_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/quantize/group_cpu.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, static_cast<size_t>(kRowTile)>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());
static_assert(kRowTile % kLanes == 0);

// ---- Codes: how a value is rounded, for the lanes of one vector of rows -------------------------------------------

struct Rounded {
  V rank, level, value;
};

HWY_INLINE V inverse_of(V scale) {
  const V zero = hn::Zero(D()), one = hn::Set(D(), 1.0f);
  const auto none = hn::Eq(scale, zero);
  return hn::IfThenElse(none, zero, hn::Div(one, hn::IfThenElse(none, one, scale)));
}

struct Uniform {
  V scale, inverse, low, high;
  Uniform(const CodeLevels& code, V scale_in, V zero) : scale(scale_in), inverse(inverse_of(scale_in)) {
    low = hn::Sub(hn::Set(D(), code.low), zero);
    high = hn::Sub(hn::Set(D(), code.high), zero);
  }
  HWY_INLINE Rounded level_of(V ratio) const {
    const V level = hn::Min(hn::Max(hn::Round(ratio), low), high);
    return {hn::Sub(level, low), level, hn::Mul(level, scale)};
  }
  // kExact: by division, as the definition says; else by the scale's inverse, for searches.
  template <bool kExact>
  HWY_INLINE Rounded round(V v) const {
    if constexpr (kExact) {
      const auto none = hn::Eq(scale, hn::Zero(D()));
      return level_of(hn::IfThenZeroElse(none, hn::Div(v, hn::IfThenElse(none, hn::Set(D(), 1.0f), scale))));
    }
    return level_of(hn::Mul(v, inverse));
  }
  HWY_INLINE V level_at(V rank) const { return hn::Add(rank, low); }
};

struct Table {
  V scale, inverse;
  const CodeLevels& code;
  Table(const CodeLevels& code_in, V scale_in, V) : scale(scale_in), inverse(inverse_of(scale_in)), code(code_in) {}
  template <bool>
  HWY_INLINE Rounded round(V v) const {
    const V ratio = hn::Mul(v, inverse);
    V rank = hn::Zero(D()), level = hn::Set(D(), code.levels[0]);
    const V one = hn::Set(D(), 1.0f);
    for (size_t i = 1; i < static_cast<size_t>(code.count); ++i) {
      const auto above = hn::Gt(ratio, hn::Set(D(), 0.5f * (code.levels[i - 1] + code.levels[i])));
      rank = hn::Add(rank, hn::IfThenElseZero(above, one));
      level = hn::IfThenElse(above, hn::Set(D(), code.levels[i]), level);
    }
    return {rank, level, hn::Mul(level, scale)};
  }
};

// E4M3: 4 significant bits down to 2^-6, steps of 2^-9 below, at most 448.
struct Float8 {
  V scale, inverse;
  Float8(const CodeLevels&, V scale_in, V) : scale(scale_in), inverse(inverse_of(scale_in)) {}
  template <bool>
  HWY_INLINE Rounded round(V v) const {
    const hn::RebindToUnsigned<D> du;
    const V ratio = hn::Mul(v, inverse), magnitude = hn::Min(hn::Abs(ratio), hn::Set(D(), 448.0f));
    const V power = hn::BitCast(D(), hn::And(hn::BitCast(du, magnitude), hn::Set(du, 0x7F800000u)));
    const V step = hn::Mul(hn::Max(power, hn::Set(D(), 0x1p-6f)), hn::Set(D(), 0.125f));
    const V level = hn::CopySign(hn::Mul(hn::Round(hn::Div(magnitude, step)), step), ratio);
    return {hn::Zero(D()), level, hn::Mul(level, scale)};
  }
};

// The subset sums of each lane's line.
struct Lines {
  V values[16], middles[15];
  int count;
  Lines(const CodeLevels& code, const uint16_t* line) : count(code.count) {
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      HWY_ALIGN float lanes[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane)
        lanes[lane] = code.line_values[static_cast<size_t>(line[lane]) * 16 + i];
      values[i] = hn::Load(D(), lanes);
      if (i > 0) middles[i - 1] = hn::Mul(hn::Set(D(), 0.5f), hn::Add(values[i - 1], values[i]));
    }
  }
  template <bool>
  HWY_INLINE Rounded round(V v) const {
    V rank = hn::Zero(D()), value = values[0];
    const V one = hn::Set(D(), 1.0f);
    for (int i = 1; i < count; ++i) {
      const auto above = hn::Gt(v, middles[i - 1]);
      rank = hn::Add(rank, hn::IfThenElseZero(above, one));
      value = hn::IfThenElse(above, values[i], value);
    }
    return {rank, value, value};
  }
};

// ---- Losses --------------------------------------------------------------------------------------------------------

// A tile's columns next to each other: [column][kRowTile].
std::vector<float> gather(const float* from, int64_t rows, int64_t columns, int64_t row) {
  std::vector<float> tile(static_cast<size_t>(columns * kRowTile));
  for (int64_t c = 0; c < columns; ++c) std::copy_n(from + c * rows + row, kRowTile, tile.data() + c * kRowTile);
  return tile;
}

template <class Code>
HWY_INLINE V diagonal_loss(const Code& code, const float* w, const float* weight, int64_t columns) {
  V loss = hn::Zero(D());
  for (int64_t c = 0; c < columns; ++c) {
    const V v = hn::LoadU(D(), w + c * kRowTile);
    const V error = hn::Sub(v, code.template round<false>(v).value);
    loss = hn::MulAdd(hn::Mul(error, hn::Set(D(), weight[c])), error, loss);
  }
  return loss;
}

// sum over b < c of factor[b] * from[b], in four interleaved sums.
HWY_INLINE V weighted_sum(const float* factor, const float* from, int64_t c) {
  V sum[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  int64_t b = 0;
  for (; b + 4 <= c; b += 4)
    for (int64_t i = 0; i < 4; ++i)
      sum[i] = hn::MulAdd(hn::Set(D(), factor[b + i]), hn::LoadU(D(), from + (b + i) * kRowTile), sum[i]);
  for (; b < c; ++b) sum[0] = hn::MulAdd(hn::Set(D(), factor[b]), hn::LoadU(D(), from + b * kRowTile), sum[0]);
  return hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
}

// The loss of rounding the group with feedback (kFeedback), or e^T H e of rounding without (kBlock).
template <class Code>
HWY_INLINE V trial_loss(const Code& code, FitMetric metric, const float* w, const float* factor, int64_t columns,
                        float* errors) {
  V loss = hn::Zero(D());
  for (int64_t c = 0; c < columns; ++c) {
    const float* row = factor + c * columns;
    const V v = hn::LoadU(D(), w + c * kRowTile), fed = weighted_sum(row, errors, c);
    V y;
    if (metric == FitMetric::kFeedback) {
      const V wanted = hn::Sub(v, fed);
      y = hn::Mul(hn::Sub(wanted, code.template round<false>(wanted).value), hn::Set(D(), 1.0f / row[c]));
      hn::StoreU(y, D(), errors + c * kRowTile);
    } else {
      const V error = hn::Sub(v, code.template round<false>(v).value);
      hn::StoreU(error, D(), errors + c * kRowTile);
      y = hn::MulAdd(error, hn::Set(D(), row[c]), fed);
    }
    loss = hn::MulAdd(y, y, loss);
  }
  return loss;
}

// ---- Scale search ----------------------------------------------------------------------------------------------------

V round_scale(V scale, DType dtype) {
  if (dtype == DType::kF32) return scale;
  HWY_ALIGN float lanes[kLanes];
  hn::Store(scale, D(), lanes);
  for (float& value : lanes)
    value = dtype == DType::kBf16  ? bf16::from_float(value).to_float()
            : dtype == DType::kF16 ? f16::from_float(value).to_float()
                                   : e4m3::from_float(value).to_float();
  return hn::Load(D(), lanes);
}

// The parameters of least loss so far.
struct Best {
  V loss, scale, zero;
  // An infinite scale stays where none fits scale_dtype. Written out: GCC gives implicit constructors no instruction set.
  HWY_INLINE Best() : loss(hn::Set(D(), HUGE_VALF)), scale(loss), zero(hn::Zero(D())) {}
  void offer(V other_loss, V other_scale, V other_zero) {
    const auto better = hn::Lt(other_loss, loss);
    loss = hn::IfThenElse(better, other_loss, loss);
    scale = hn::IfThenElse(better, other_scale, scale);
    zero = hn::IfThenElse(better, other_zero, zero);
  }
};

struct Range {
  V low, high;  // both take in 0
  HWY_INLINE Range() : low(hn::Zero(D())), high(hn::Zero(D())) {}
  V widest() const { return hn::Max(hn::Neg(low), high); }
};

Range range_of(const float* w, int64_t columns) {
  Range range;
  for (int64_t c = 0; c < columns; ++c) {
    const V v = hn::LoadU(D(), w + c * kRowTile);
    range.low = hn::Min(range.low, v);
    range.high = hn::Max(range.high, v);
  }
  return range;
}

// What the largest value of a code is worth, the widest weight being it without clipping.
float top_of(const CodeLevels& code) {
  switch (code.kind) {
    case CodeLevels::Kind::kTable: return code.levels[static_cast<size_t>(code.count - 1)];
    case CodeLevels::Kind::kE4m3: return 448.0f;
    default: return 0.5f * (code.high - code.low);
  }
}

// The steps of the two searches: shares of the widest scale, and factors around the best of them.
constexpr float kFirstShare = 1.025f, kShareStep = 0.0125f;
constexpr int kShares = 44;
constexpr float kNearFactors[] = {1.0f, 0.86f, 0.9f, 0.93f, 0.955f, 0.98f, 1.02f, 1.045f, 1.07f, 1.1f};

// Calls loss(code) for the scales (and zero points) of the wide search.
template <class Code, class Loss>
HWY_INLINE void search_widely(const FitArgs& args, const Range& range, Best& best, const Loss& loss) {
  const CodeLevels& code = *args.code;
  const V none = hn::Zero(D());
  const auto offer = [&](V scale, V zero) { best.offer(loss(Code(code, scale, zero)), scale, zero); };
  for (int i = 0; i < kShares; ++i) {
    const V share = hn::Set(D(), kFirstShare - kShareStep * static_cast<float>(i));
    if (code.zero_point) {
      const V width = hn::Sub(range.high, range.low);
      const V scale = round_scale(hn::Mul(hn::Mul(width, hn::Set(D(), 1.0f / 15)), share), code.scale_dtype);
      const V low = hn::MulAdd(width, hn::Mul(hn::Set(D(), 0.5f), hn::Sub(hn::Set(D(), 1.0f), share)), range.low);
      const V middle = hn::Round(hn::Mul(hn::Neg(low), inverse_of(scale)));
      for (const float shift : {0.0f, -1.0f, 1.0f}) {
        const V zero = hn::Min(hn::Max(hn::Add(middle, hn::Set(D(), shift)), none), hn::Set(D(), 15.0f));
        offer(scale, zero);
      }
      continue;
    }
    const V widest = hn::Mul(range.widest(), hn::Set(D(), 1.0f / top_of(code)));
    if (code.kind == CodeLevels::Kind::kE4m3) {
      // A binary float's error repeats with each doubling of the scale, but for clipping and subnormals.
      const V scale = hn::Mul(widest, hn::Set(D(), std::exp2(static_cast<float>(i - 12) / 16)));
      offer(round_scale(scale, code.scale_dtype), none);
      continue;
    }
    const V scale = round_scale(hn::Mul(widest, share), code.scale_dtype);
    offer(scale, none);
    if (args.signed_scales && code.low != -code.high && code.kind == CodeLevels::Kind::kUniform)
      offer(hn::Neg(scale), none);
  }
}

template <class Code, class Loss>
HWY_INLINE void search_near(const FitArgs& args, const Best& start, Best& best, const Loss& loss) {
  const CodeLevels& code = *args.code;
  const bool both =
      args.signed_scales && !code.zero_point && code.low != -code.high && code.kind == CodeLevels::Kind::kUniform;
  for (const float factor : kNearFactors) {
    const V scale = round_scale(hn::Mul(start.scale, hn::Set(D(), factor)), code.scale_dtype);
    best.offer(loss(Code(code, scale, start.zero)), scale, start.zero);
    if (both) {
      const V other = hn::Neg(scale);
      best.offer(loss(Code(code, other, start.zero)), other, start.zero);
    }
    if (code.zero_point && std::abs(factor - 1) < 0.05f) {
      for (const float shift : {-1.0f, 1.0f}) {
        const V zero = hn::Min(hn::Max(hn::Add(start.zero, hn::Set(D(), shift)), hn::Zero(D())), hn::Set(D(), 15.0f));
        best.offer(loss(Code(code, scale, zero)), scale, zero);
      }
    }
  }
}

// absmax / 7.5, / 7, / 3 or (max - min) / 15.
void fit_by_range(const FitArgs& args, const Range& range, Best& best) {
  const CodeLevels& code = *args.code;
  if (code.zero_point) {
    const V width = hn::Sub(range.high, range.low);
    best.scale = round_scale(hn::Div(width, hn::Set(D(), 15.0f)), code.scale_dtype);
    const V zero = hn::Round(hn::Mul(hn::Neg(range.low), inverse_of(best.scale)));
    best.zero = hn::Min(hn::Max(zero, hn::Zero(D())), hn::Set(D(), 15.0f));
    return;
  }
  best.scale = round_scale(hn::Div(range.widest(), hn::Set(D(), top_of(code))), code.scale_dtype);
}

template <class Code>
void fit_scales(const FitArgs& args, int64_t row, const std::vector<float>& tile, std::vector<float>& errors) {
  for (int64_t lane = 0; lane < kRowTile; lane += kLanes) {
    const float* w = tile.data() + lane;
    const Range range = range_of(w, args.columns);
    Best best;
    if (args.metric == FitMetric::kAbsMax) {
      fit_by_range(args, range, best);
    } else {
      search_widely<Code>(args, range, best,
                          [&](const Code& code) { return diagonal_loss(code, w, args.weight, args.columns); });
      if (args.metric != FitMetric::kDiagonal) {
        Best nearby;
        search_near<Code>(args, best, nearby, [&](const Code& code) {
          return trial_loss(code, args.metric, w, args.factor, args.columns, errors.data() + lane);
        });
        best = nearby;
      }
    }
    hn::StoreU(best.scale, D(), args.out.scale.data() + row + lane);
    hn::StoreU(best.zero, D(), args.out.zero.data() + row + lane);
  }
}

void fit_lines(const FitArgs& args, int64_t row, const std::vector<float>& tile, std::vector<float>& errors) {
  for (int64_t lane = 0; lane < kRowTile; lane += kLanes) {
    const float* w = tile.data() + lane;
    V least = hn::Set(D(), HUGE_VALF), best = hn::Zero(D());
    for (int64_t i = 0; i < args.candidates; ++i) {
      const uint16_t* line = args.candidate_lines + i * args.rows + row + lane;
      const Lines code(*args.code, line);
      const V loss = args.metric == FitMetric::kDiagonal
                         ? diagonal_loss(code, w, args.weight, args.columns)
                         : trial_loss(code, args.metric, w, args.factor, args.columns, errors.data() + lane);
      const auto better = hn::Lt(loss, least);
      least = hn::IfThenElse(better, loss, least);
      best = hn::IfThenElse(better, hn::Set(D(), static_cast<float>(i)), best);
    }
    HWY_ALIGN float chosen[kLanes];
    hn::Store(best, D(), chosen);
    for (int64_t i = 0; i < kLanes; ++i)
      args.out.line[static_cast<size_t>(row + lane + i)] =
          args.candidate_lines[static_cast<int64_t>(chosen[i]) * args.rows + row + lane + i];
  }
}

void fit_group(const FitArgs& args, int64_t row) {
  const std::vector<float> tile = gather(args.w, args.rows, args.columns, row);
  std::vector<float> errors(tile.size());
  switch (args.code->kind) {
    case CodeLevels::Kind::kUniform: return fit_scales<Uniform>(args, row, tile, errors);
    case CodeLevels::Kind::kTable: return fit_scales<Table>(args, row, tile, errors);
    case CodeLevels::Kind::kE4m3: return fit_scales<Float8>(args, row, tile, errors);
    case CodeLevels::Kind::kLines: return fit_lines(args, row, tile, errors);
  }
}

// ---- Rounding --------------------------------------------------------------------------------------------------------

// Calls body(code, lane) with the code of each vector of rows.
template <class Body>
HWY_INLINE void with_code(const CodeLevels& code, const GroupParams& params, int64_t row, const Body& body) {
  for (int64_t lane = 0; lane < kRowTile; lane += kLanes) {
    if (code.kind == CodeLevels::Kind::kLines) {
      body(Lines(code, params.line.data() + row + lane), lane);
      continue;
    }
    const V scale = hn::LoadU(D(), params.scale.data() + row + lane);
    const V zero = hn::LoadU(D(), params.zero.data() + row + lane);
    switch (code.kind) {
      case CodeLevels::Kind::kUniform: body(Uniform(code, scale, zero), lane); break;
      case CodeLevels::Kind::kE4m3: body(Float8(code, scale, zero), lane); break;
      default: body(Table(code, scale, zero), lane); break;
    }
  }
}

HWY_INLINE void store_ranks(V rank, uint8_t* to) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(rank, D(), lanes);
  for (int64_t i = 0; i < kLanes; ++i) to[i] = static_cast<uint8_t>(lanes[i]);
}

void round_block(const RoundArgs& args, int64_t row) {
  std::vector<float> errors(static_cast<size_t>(args.columns * kRowTile));
  with_code(*args.code, args.params, row, [&](const auto& code, int64_t lane) {
    for (int64_t c = 0; c < args.columns; ++c) {
      const int64_t place = c * args.rows + row + lane;
      V wanted = hn::LoadU(D(), args.w + place);
      if (args.factor != nullptr)
        wanted = hn::Sub(wanted, weighted_sum(args.factor + c * args.columns, errors.data() + lane, c));
      const Rounded rounded = code.template round<true>(wanted);
      store_ranks(rounded.rank, args.rank + place);
      hn::StoreU(rounded.value, D(), args.value + place);
      if (args.factor == nullptr) continue;
      const V error = hn::Div(hn::Sub(wanted, rounded.value), hn::Set(D(), args.factor[c * args.columns + c]));
      hn::StoreU(error, D(), errors.data() + c * kRowTile + lane);
      if (args.error != nullptr) hn::StoreU(error, D(), args.error + place);
    }
  });
}

// ---- Coordinate descent ------------------------------------------------------------------------------------------------

// gradient -= change * (column c of h).
HWY_INLINE void move_gradient(const float* h, V change, int64_t columns, float* gradient) {
  for (int64_t b = 0; b < columns; ++b) {
    const V g = hn::LoadU(D(), gradient + b * kRowTile);
    hn::StoreU(hn::NegMulAdd(change, hn::Set(D(), h[b]), g), D(), gradient + b * kRowTile);
  }
}

// The scale of least loss for the codes as they are: with levels l, scale += l^T g / l^T H l.
template <class Code>
HWY_INLINE void refit_scale(const RefineArgs& args, const Code& code, int64_t row, int64_t lane, float* gradient,
                            float* levels, float* delta) {
  const int64_t columns = args.columns;
  V slope = hn::Zero(D()), curve = hn::Zero(D());
  for (int64_t c = 0; c < columns; ++c) {
    const V value = hn::LoadU(D(), args.value + c * args.rows + row + lane);
    // Levels are multiples of 1/64.
    const V level = hn::Round(hn::Mul(hn::Mul(value, code.inverse), hn::Set(D(), 64.0f)));
    hn::StoreU(hn::Mul(level, hn::Set(D(), 1.0f / 64)), D(), levels + c * kRowTile);
  }
  for (int64_t c = 0; c < columns; ++c) {
    const V level = hn::LoadU(D(), levels + c * kRowTile);
    slope = hn::MulAdd(level, hn::LoadU(D(), gradient + c * kRowTile), slope);
    const V row_sum = weighted_sum(args.h + c * columns, levels, columns);
    curve = hn::MulAdd(level, row_sum, curve);
  }
  const V zero = hn::Zero(D());
  const V step = hn::IfThenElseZero(hn::Gt(curve, zero), hn::Div(slope, hn::Max(curve, hn::Set(D(), 1e-30f))));
  const V moved = round_scale(hn::Add(code.scale, step), args.code->scale_dtype);
  V change = hn::Sub(moved, code.scale);
  // loss' - loss = change^2 curve - 2 change slope.
  const V gain = hn::Mul(change, hn::Sub(hn::Add(slope, slope), hn::Mul(change, curve)));
  const auto better = hn::And(hn::Gt(gain, zero), hn::Ne(moved, zero));
  change = hn::IfThenElseZero(better, change);
  if (hn::AllTrue(D(), hn::Eq(change, zero))) return;
  const V scale = hn::IfThenElse(better, moved, code.scale);
  hn::StoreU(scale, D(), args.params.scale.data() + row + lane);
  for (int64_t c = 0; c < columns; ++c) {
    const V level = hn::LoadU(D(), levels + c * kRowTile);
    float* value = args.value + c * args.rows + row + lane;
    const V next = hn::IfThenElse(better, hn::Mul(level, scale), hn::LoadU(D(), value));
    const V moved_by = hn::Sub(next, hn::LoadU(D(), value));
    hn::StoreU(next, D(), value);
    hn::StoreU(hn::Add(moved_by, hn::LoadU(D(), delta + c * kRowTile)), D(), delta + c * kRowTile);
    const V row_sum = weighted_sum(args.h + c * columns, levels, columns);
    float* g = gradient + c * kRowTile;
    hn::StoreU(hn::NegMulAdd(change, row_sum, hn::LoadU(D(), g)), D(), g);
  }
}

void refine_group(const RefineArgs& args, int64_t row) {
  const int64_t columns = args.columns;
  std::vector<float> gradient = gather(args.gradient, args.rows, columns, row);
  std::vector<float> delta(gradient.size()), levels(gradient.size());
  with_code(*args.code, args.params, row, [&](const auto& code, int64_t lane) {
    for (int64_t c = 0; c < columns; ++c) {
      const float curve = args.h[c * columns + c];
      if (!(curve > 0)) continue;
      const int64_t place = c * args.rows + row + lane;
      float* g = gradient.data() + lane;
      const V value = hn::LoadU(D(), args.value + place);
      const V wanted = hn::MulAdd(hn::LoadU(D(), g + c * kRowTile), hn::Set(D(), 1.0f / curve), value);
      const Rounded rounded = code.template round<true>(wanted);
      const V change = hn::Sub(rounded.value, value);
      if (hn::AllTrue(D(), hn::Eq(change, hn::Zero(D())))) continue;
      hn::StoreU(rounded.value, D(), args.value + place);
      store_ranks(rounded.rank, args.rank + place);
      float* moved = delta.data() + c * kRowTile + lane;
      hn::StoreU(hn::Add(change, hn::LoadU(D(), moved)), D(), moved);
      move_gradient(args.h + c * columns, change, columns, g);
    }
    if constexpr (requires { code.scale; }) {
      if (args.refit_scale && args.code->kind != CodeLevels::Kind::kE4m3)
        refit_scale(args, code, row, lane, gradient.data() + lane, levels.data() + lane, delta.data() + lane);
    }
  });
  for (int64_t c = 0; c < columns; ++c) {
    std::copy_n(gradient.data() + c * kRowTile, kRowTile, args.gradient + c * args.rows + row);
    std::copy_n(delta.data() + c * kRowTile, kRowTile, args.delta + c * args.rows + row);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {
HWY_EXPORT(fit_group);
HWY_EXPORT(round_block);
HWY_EXPORT(refine_group);
}  // namespace

void fit_group_tile(const FitArgs& args, int64_t row) { HWY_DYNAMIC_DISPATCH(fit_group)(args, row); }
void round_block_tile(const RoundArgs& args, int64_t row) { HWY_DYNAMIC_DISPATCH(round_block)(args, row); }
void refine_group_tile(const RefineArgs& args, int64_t row) { HWY_DYNAMIC_DISPATCH(refine_group)(args, row); }

}  // namespace hearth
#endif  // HWY_ONCE
