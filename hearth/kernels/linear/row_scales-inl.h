// SPDX-License-Identifier: Apache-2.0
// The scales and zero points of a row of quantized weights, widened to f32, and which of them each lane takes.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_ROW_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_ROW_SCALES_INL_H_
#undef HEARTH_KERNELS_LINEAR_ROW_SCALES_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_ROW_SCALES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>

#include "hearth/kernels/cpu/vector-inl.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/linear_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

namespace qp = quantized_plan;

template <class T>
void widen(const void* from, int64_t offset, int64_t count, float* to) {
  const T* values = static_cast<const T*>(from) + offset;
  for_channels(count, [&](auto d, int64_t i) HWY_ATTR { hn::StoreU(load_f32(d, values + i), d, to + i); });
}

// The scales of a row's groups, then zeros: a vector may be read from any of them.
void load_scales(const qp::Job& job, int64_t row, float* scales) {
  const LinearWeight& weight = *job.weight;
  const int64_t groups = job.reader->groups();
  const bool per_group =
      weight.format.scale_layout == ScaleLayout::kGroup || weight.format.scale_layout == ScaleLayout::kBlock;
  const int64_t scale_row = weight.format.scale_layout == ScaleLayout::kBlock ? row / weight.format.block_n : row;
  const int64_t offset = scale_row * weight.scales.row_stride;
  if (weight.format.integer_lines && weight.format.scale_layout == ScaleLayout::kNone) {
    const uint16_t* lines = static_cast<const uint16_t*>(weight.line_index.data) + row * weight.line_index.row_stride;
    const f16* line_scales = static_cast<const f16*>(weight.line_scales.data);
#if HWY_TARGET <= HWY_AVX2
    if (weight.format.lines > 1) {
      // 32 bits that end, or for the first line begin, with a scale.
      for_channels(groups, [&](auto d, int64_t i) HWY_ATTR {
        const hn::RebindToSigned<decltype(d)> di;
        const hn::RebindToUnsigned<decltype(d)> du;
        const auto line = hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint16_t, decltype(d)>(), lines + i));
        const auto first = hn::Eq(line, hn::Zero(di));
        const auto place = hn::IfThenZeroElse(first, hn::Add(line, hn::Sub(line, hn::Set(di, 2))));
        const auto pair = hn::GatherOffset(di, reinterpret_cast<const int32_t*>(line_scales), place);
        const auto bits = hn::BitCast(du, hn::IfThenElse(first, hn::ShiftLeft<16>(pair), pair));
        const auto half = hn::DemoteTo(hn::Rebind<uint16_t, decltype(d)>(), hn::BitCast(di, hn::ShiftRight<16>(bits)));
        hn::StoreU(hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, decltype(d)>(), half)), d, scales + i);
      });
      std::fill_n(scales + groups, 16, 0.0f);
      return;
    }
#endif
    for (int64_t g = 0; g < groups; ++g) scales[g] = line_scales[lines[g]].to_float();
  } else if (per_group && !weight.format.integer_lines && weight.format.scale_dtype == DType::kF32) {
    widen<float>(weight.scales.data, offset, groups, scales);
  } else if (per_group && !weight.format.integer_lines && weight.format.scale_dtype == DType::kF16) {
    widen<f16>(weight.scales.data, offset, groups, scales);
  } else if (per_group && !weight.format.integer_lines && weight.format.scale_dtype == DType::kBf16) {
    widen<bf16>(weight.scales.data, offset, groups, scales);
  } else {
    for (int64_t g = 0; g < groups; ++g) scales[g] = job.reader->scale(row, g);
  }
  std::fill_n(scales + groups, 16, 0.0f);
}

// The zero points of a row's groups, times their scales but for kI8PerGroup: scale value - scale zero is scale (value -
// zero), exactly for scales of 16 bits, to a rounding of scale zero for f32.
void load_zeros(const qp::Job& job, int64_t row, const float* scales, float* zeros) {
  const LinearWeight& weight = *job.weight;
  const int64_t groups = job.reader->groups();
  if (weight.format.scale_layout == ScaleLayout::kGroup) {
    const uint8_t* from = static_cast<const uint8_t*>(weight.zeros.data) + row * weight.zeros.row_stride;
    for_channels(groups, [&](auto d, int64_t i) HWY_ATTR {
      const hn::RebindToSigned<decltype(d)> di;
      hn::StoreU(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, decltype(d)>(), from + i))), d,
                 zeros + i);
    });
  } else {
    for (int64_t g = 0; g < groups; ++g) zeros[g] = job.reader->zero(row, g);
  }
  if (job.act != ActFormat::kI8PerGroup)
    for_channels(groups, [&](auto d, int64_t i) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, zeros + i), hn::LoadU(d, scales + i)), d, zeros + i);
    });
  std::fill_n(zeros + groups, 16, 0.0f);
}

// Which of a row's groups the lanes of a unit belong to. REQUIRES: groups of whole multiples of `per` columns.
class LaneScales {
 public:
  LaneScales(int64_t group, int64_t per) : group_(group), per_(per), unit_(per * kLanes) {
    int32_t indices[kLanes] = {};
    if (group % unit_ == 0) {
      const auto units = static_cast<uint64_t>(group / unit_);
      units_ = static_cast<int64_t>(units);
      if (std::has_single_bit(units)) shift_ = std::countr_zero(units);
    } else if (unit_ % group == 0) {
      spread_ = unit_ / group;
      for (int64_t i = 0; i < kLanes; ++i) indices[i] = static_cast<int32_t>(per * i / group);
    }
    std::copy_n(indices, kLanes, indices_);
  }

  // REQUIRES: the unit lies in one group.
  HWY_INLINE int64_t group_of(int64_t unit) const { return shift_ >= 0 ? unit >> shift_ : unit / units_; }

  // The value of each lane's group.
  HWY_INLINE V load(const float* per_group, int64_t unit) const {
    if (units_ > 0) return hn::Set(D(), per_group[group_of(unit)]);
#if HWY_TARGET != HWY_SCALAR
    if (spread_ > 0)
      return hn::TableLookupLanes(hn::LoadU(D(), per_group + unit * spread_), hn::SetTableIndices(D(), indices_));
#endif
    alignas(64) float lanes[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] = per_group[(unit * unit_ + i * per_) / group_];
    return hn::Load(D(), lanes);
  }

 private:
  int64_t group_, per_, unit_;
  int64_t units_ = 0;   // of a group, where it has whole ones
  int shift_ = -1;      // its logarithm, where it has one
  int64_t spread_ = 0;  // groups of a unit, where it has whole ones
  alignas(64) int32_t indices_[kLanes];
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
