// SPDX-License-Identifier: Apache-2.0
// How rows of quantized weights become vectors. A Row type has
//   kPer          columns of a lane in a unit
//   kVectors      vectors of a unit: vector j holds columns first_column(j) + i kColumnStride in lane i (IntegerRow: two)
//   kGrouped      false: vectors are f32(scale * value); true: they are the values, and Unit::scale() their scales
//   kUnitVectors  vectors of a unit of packed x or of a panel: kVectors and, where kGrouped, the scales
//   Shared        what all rows of a weight have in common
//   Unit          made from a row and the unit's number; next() gives its vectors in order
//   Products      how the vectors are multiplied with x: FloatProducts or IntegerProducts
//   kIsRare       no tiles of several tokens are made for it
// Row(shared, row, scratch) keeps what it needs in row_scratch_floats() of scratch. No read beyond the last code of W.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#undef HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_QUANTIZED_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "hearth/kernels/cpu/vector-inl.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/linear_tile-inl.h"

HWY_BEFORE_NAMESPACE();
#include "hearth/kernels/linear/vnni-inl.h"
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

namespace qp = quantized_plan;

// ---- Scales ---------------------------------------------------------------------------------------------

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

// Products with x in f32.
struct FloatProducts {
  using Sum = V;
  static HWY_INLINE V zero() { return hn::Zero(D()); }
  static HWY_INLINE void store(V v, float* to) { hn::Store(v, D(), to); }
  static HWY_INLINE V load(const float* from) { return hn::Load(D(), from); }
  static HWY_INLINE V multiply_add(V w, const float* x, V sum) { return hn::MulAdd(w, hn::Load(D(), x), sum); }
  static HWY_INLINE V to_float(V sum) { return sum; }
};

// ---- 4-bit codes ----------------------------------------------------------------------------------------

using Words = hn::Vec<hn::RebindToUnsigned<D>>;
constexpr int64_t kNibblePer = 8;

// Sixteen floats in as many vectors as they fill.
struct Table16 {
  static constexpr int64_t kVectors = 16 / std::min<int64_t>(kLanes, 16);
  V values[kVectors];

  static HWY_INLINE Table16 load(const float* from) {
    Table16 table;
    for (int64_t i = 0; i < kVectors; ++i) table.values[i] = hn::LoadU(D(), from + i * kLanes);
    return table;
  }
  HWY_INLINE void subtract(float zero) {
    for (V& v : values) v = hn::Sub(v, hn::Set(D(), zero));
  }
  HWY_INLINE void scale(float factor) {
    for (V& v : values) v = hn::Mul(v, hn::Set(D(), factor));
  }
  HWY_INLINE void scale_subtract(float factor, float offset) {
    for (V& v : values) v = hn::MulSub(v, hn::Set(D(), factor), hn::Set(D(), offset));
  }
  // The entries of the low 4 bits of each word. The permutations of x86 ignore the higher bits.
  HWY_INLINE V operator[](Words words) const {
#if HWY_TARGET <= HWY_AVX3
    return V{_mm512_permutexvar_ps(words.raw, values[0].raw)};
#elif HWY_TARGET == HWY_AVX2
    const V low{_mm256_permutevar8x32_ps(values[0].raw, words.raw)};
    const V high{_mm256_permutevar8x32_ps(values[1].raw, words.raw)};
    return V{_mm256_blendv_ps(low.raw, high.raw, hn::BitCast(D(), hn::ShiftLeft<28>(words)).raw)};
#else
    alignas(64) float table[16];
    for (int64_t i = 0; i < kVectors; ++i) hn::Store(values[i], D(), table + i * kLanes);
    const hn::RebindToUnsigned<D> du;
    return hn::GatherIndex(D(), table, hn::BitCast(hn::RebindToSigned<D>(), hn::And(words, hn::Set(du, 15))));
#endif
  }
};

// The codes of a row: word i of a unit holds columns 8 i to 8 i + 7, the first in its low bits. Behind the last column of
// a row may lie codes of the next: they meet zeros of x. The last units of W, which would be read beyond its end, are
// copied.
class NibbleCodes {
 public:
  static constexpr int64_t kBytes = 4 * kLanes;
  static constexpr int64_t kBeyond = 3;  // words are also read from up to 3 bytes further

  NibbleCodes(const qp::Job& job, int64_t at, float* scratch)
      : row_(static_cast<const uint8_t*>(job.tile.weight) + at * job.row_bytes),
        tail_(reinterpret_cast<const uint8_t*>(scratch)) {
    static_assert(2 * kBytes + kBeyond <= qp::kTailFloats * static_cast<int64_t>(sizeof(float)));
    const int64_t bytes = (job.tile.n - 1 - at) * job.row_bytes + (job.tile.k + 1) / 2;  // to the end of W
    safe_units_ = std::max<int64_t>(bytes - kBeyond, 0) / kBytes;
    const int64_t left = std::min((job.tile.k + 1) / 2 - safe_units_ * kBytes, 2 * kBytes);
    if (HWY_LIKELY(left <= 0)) return;
    std::memset(scratch, 0, qp::kTailFloats * sizeof(float));
    std::memcpy(scratch, row_ + safe_units_ * kBytes, static_cast<size_t>(left));
  }
  HWY_INLINE const uint8_t* at(int64_t unit) const {
    return HWY_LIKELY(unit < safe_units_) ? row_ + unit * kBytes : tail_ + (unit - safe_units_) * kBytes;
  }

 private:
  const uint8_t* row_;
  const uint8_t* tail_;
  int64_t safe_units_;
};

// The codes of one unit.
class NibbleWords {
 public:
  HWY_INLINE NibbleWords(const NibbleCodes& codes, int64_t unit) : from_(codes.at(unit)) {
    hwy::Prefetch(from_ + lp::kPrefetchBytes);
  }

  // Words whose low 4 bits are columns 0, 1, ..., 7 of each lane, one after the other. A second load in place of
  // every second shift: shifts compete with the multiply-adds, loads do not.
  HWY_INLINE Words next() {
    words_ = next_ % 2 == 0 ? load(next_ / 2) : hn::ShiftRight<4>(words_);
    ++next_;
    return words_;
  }
  // The words from `byte` on.
  HWY_INLINE Words load(int64_t byte) const {
    const hn::RebindToUnsigned<D> du;
#if HWY_TARGET == HWY_SCALAR
    uint32_t word;
    std::memcpy(&word, from_ + byte, sizeof(word));
    return hn::Set(du, word);
#else
    return hn::BitCast(du, hn::LoadU(hn::Repartition<uint8_t, D>(), from_ + byte));
#endif
  }

 private:
  const uint8_t* from_;
  int next_ = 0;
  Words words_;
};

// The coefficient lines of up to 4 bitvectors.
class Lines {
 public:
  explicit Lines(const LinearWeight& weight)
      : integers_(weight.format.integer_lines),
        count_(weight.format.bitvectors),
        stride_(weight.lines.row_stride),
        last_(weight.format.lines - 1),
        data_(static_cast<const uint8_t*>(weight.lines.data)) {
    if (integers_) std::memcpy(last_line_, data_ + last_ * stride_, static_cast<size_t>(std::min(count_, 4)));
    for (int code = 0; code < 16; ++code)
      for (int s = 0; s < 4; ++s) has_[s][code] = s < count_ && (code >> (count_ - 1 - s) & 1) ? ~0u : 0u;
    for (int code = 0; code < 16; ++code)
      for (int s = 0; s < 4; ++s) {
        bits_[code][s] = has_[s][code] & 1;
        masks_[s] = static_cast<uint16_t>(masks_[s] | bits_[code][s] << code);
      }
  }

  // The sums of the 16 codes, in the order of subset_sums().
  HWY_INLINE Table16 sums(int64_t line) const {
#if HWY_TARGET <= HWY_AVX3
    if (integers_) return {{V{_mm512_cvtepi32_ps(integer_sums(line))}}};
#endif
#if HWY_TARGET <= HWY_AVX3
    uint64_t halves = 0;
    const uint8_t* at = data_ + 2 * line * stride_;
    if (HWY_LIKELY(count_ == 4 || line != last_)) {
      std::memcpy(&halves, at, 8);
    } else {
      std::memcpy(&halves, at, static_cast<size_t>(count_) * 2);
    }
    const __m512 all = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(halves))));
    __m512 sum = _mm512_maskz_permutexvar_ps(masks_[0], _mm512_setzero_si512(), all);
    for (int s = 1; s < 4; ++s)
      sum = _mm512_add_ps(sum, _mm512_maskz_permutexvar_ps(masks_[s], _mm512_set1_epi32(s), all));
    return {{V{sum}}};
#else
    float coefficients[4] = {};
    if (integers_) {
      const auto* from = reinterpret_cast<const int8_t*>(data_) + line * stride_;
      for (int s = 0; s < count_; ++s) coefficients[s] = from[s];
    } else {
      const auto* from = static_cast<const f16*>(static_cast<const void*>(data_)) + line * stride_;
      for (int s = 0; s < count_; ++s) coefficients[s] = from[s].to_float();
    }
    Table16 table;
    const hn::RebindToUnsigned<D> du;
    for (int64_t i = 0; i < Table16::kVectors; ++i) {
      V sum = hn::Zero(D());
      HWY_UNROLL(4)
      for (int s = 0; s < 4; ++s)
        sum =
            hn::Add(sum, hn::And(hn::BitCast(D(), hn::Load(du, has_[s] + i * kLanes)), hn::Set(D(), coefficients[s])));
      table.values[i] = sum;
    }
    return table;
#endif
  }

#if HWY_TARGET <= HWY_AVX3
  // The same as 16 integers: the sums of four products of a bit and a coefficient. REQUIRES: integer lines.
  HWY_INLINE __m512i integer_sums(int64_t line) const {
    // What follows a shorter line meets bits of 0.
    const uint8_t* at = HWY_LIKELY(line != last_) ? data_ + line * stride_ : last_line_;
    const __m512i bits = _mm512_load_si512(bits_);
    const __m512i all = _mm512_broadcastd_epi32(_mm_loadu_si32(at));
#if HEARTH_VNNI
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), bits, all);
#else
    return _mm512_madd_epi16(_mm512_maddubs_epi16(bits, all), _mm512_set1_epi16(1));
#endif
  }
#endif

 private:
  bool integers_;
  int count_;
  int64_t stride_, last_;
  const uint8_t* data_;
  alignas(64) uint32_t has_[4][16];  // all ones where a code has the bit of coefficient s
  alignas(64) uint8_t bits_[16][4];  // 1 there
  uint16_t masks_[4] = {};           // bits of those codes
  uint8_t last_line_[4] = {};        // of integers
};

// What the 4-bit codes' rows share.
struct NibbleShared {
  const qp::Job& job;
  LaneScales lanes;
  Lines lines;
  bool has_lines, has_zeros;
  alignas(64) float values[16];

  explicit NibbleShared(const qp::Job& j)
      : job(j),
        lanes(j.group, kNibblePer),
        lines(*j.weight),
        has_lines(j.weight->format.code == WeightCode::kBitvectors),
        has_zeros(j.weight->format.has_zero_point) {
    const WeightFormat& format = j.weight->format;
    if (has_lines) return;
    const std::array<float, 16> of_code = code_values(format.code);
    const float zero = format.code == WeightCode::kU4 && !has_zeros ? 8.0f : 0.0f;
    for (size_t i = 0; i < 16; ++i) values[i] = of_code[i] - zero;
  }
};

struct NibbleRow {
  using Products = FloatProducts;
  static constexpr int64_t kPer = kNibblePer;
  static constexpr int64_t kVectors = kPer;
  static constexpr int64_t kColumnStride = kPer;
  static constexpr int64_t first_column(int64_t j) { return j; }
  using Shared = NibbleShared;
  const NibbleShared& shared;
  NibbleCodes codes;
  const float* scales;
  const float* zeros;  // of load_zeros()

  NibbleRow(const NibbleShared& s, int64_t row, float* scratch)
      : shared(s),
        codes(s.job, row, scratch + 2 * qp::row_scale_floats(s.job.tile.k)),
        scales(scratch),
        zeros(scratch + qp::row_scale_floats(s.job.tile.k)) {
    load_scales(s.job, row, scratch);
    if (s.has_zeros) load_zeros(s.job, row, scratch, scratch + qp::row_scale_floats(s.job.tile.k));
  }
};

// A unit lies in one group: scale and zero point go into the table.
template <bool kGrouped_>
struct GroupRow : NibbleRow {
  static constexpr bool kIsRare = false;
  static constexpr bool kGrouped = kGrouped_;
  static constexpr int64_t kUnitVectors = kPer + kGrouped;
  using NibbleRow::NibbleRow;

  class Unit {
   public:
    HWY_INLINE Unit(const GroupRow& row, int64_t unit)
        : words_(row.codes, unit), table_(Table16::load(row.shared.values)) {
      const int64_t group = row.shared.lanes.group_of(unit);
      if constexpr (kGrouped) {
        if (row.shared.has_zeros) table_.subtract(row.zeros[group]);
        scale_ = row.scales + group;
      } else if (row.shared.has_zeros) {
        table_.scale_subtract(row.scales[group], row.zeros[group]);
      } else {
        table_.scale(row.scales[group]);
      }
    }
    HWY_INLINE V next() { return table_[words_.next()]; }
    HWY_INLINE V scale() const { return hn::Set(D(), *scale_); }

   private:
    NibbleWords words_;
    Table16 table_;
    const float* scale_;
  };
};

// Groups smaller than a unit, or that cross its border: lanes have scales and zero points of their own.
template <bool kGrouped_>
struct MixedRow : NibbleRow {
  static constexpr bool kIsRare = kGrouped_;
  static constexpr bool kGrouped = kGrouped_;
  static constexpr int64_t kUnitVectors = kPer + kGrouped;
  using NibbleRow::NibbleRow;

  class Unit {
   public:
    HWY_INLINE Unit(const MixedRow& row, int64_t unit)
        : words_(row.codes, unit),
          table_(Table16::load(row.shared.values)),
          scale_(row.shared.lanes.load(row.scales, unit)),
          has_zeros_(row.shared.has_zeros) {
      if (has_zeros_) zero_ = row.shared.lanes.load(row.zeros, unit);
    }
    HWY_INLINE V next() {
      const V v = table_[words_.next()];
      if constexpr (kGrouped) return hn::Sub(v, zero_);
      return has_zeros_ ? hn::MulSub(v, scale_, zero_) : hn::Mul(v, scale_);
    }
    HWY_INLINE V scale() const { return scale_; }

   private:
    NibbleWords words_;
    Table16 table_;
    V scale_, zero_ = hn::Zero(D());
    bool has_zeros_;
  };
};

// Up to 4 bitvectors, a unit in one group: the table is the subset sums of the group's line.
template <bool kGrouped_>
struct LineRow : NibbleRow {
  static constexpr bool kIsRare = false;
  static constexpr bool kGrouped = kGrouped_;
  static constexpr int64_t kUnitVectors = kPer + kGrouped;
  const uint16_t* line_index;

  LineRow(const NibbleShared& s, int64_t row, float* scratch)
      : NibbleRow(s, row, scratch),
        line_index(static_cast<const uint16_t*>(s.job.weight->line_index.data) +
                   row * s.job.weight->line_index.row_stride) {}

  class Unit {
   public:
    HWY_INLINE Unit(const LineRow& row, int64_t unit) : words_(row.codes, unit) {
      const int64_t group = row.shared.lanes.group_of(unit);
      table_ = row.shared.lines.sums(row.line_index[group]);
      if constexpr (kGrouped) {
        scale_ = row.scales + group;
      } else {
        table_.scale(row.scales[group]);
      }
    }
    HWY_INLINE V next() { return table_[words_.next()]; }
    HWY_INLINE V scale() const { return hn::Set(D(), *scale_); }

   private:
    NibbleWords words_;
    Table16 table_;
    const float* scale_;
  };
};

#if HWY_TARGET <= HWY_AVX3
// Products of pairs of 16-bit integers, whose sums are exact.
struct IntegerProducts {
  using Sum = __m512i;
  static HWY_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static HWY_INLINE void store(__m512i v, float* to) { _mm512_store_si512(to, v); }
  static HWY_INLINE __m512i load(const float* from) { return _mm512_load_si512(from); }
  static HWY_INLINE Sum multiply_add(__m512i w, const float* x, Sum sum) {
#if HEARTH_VNNI
    return _mm512_dpwssd_epi32(sum, w, load(x));
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, load(x)));
#endif
  }
  static HWY_INLINE V to_float(Sum sum) { return V{_mm512_cvtepi32_ps(sum)}; }
  // Vector j of x, integers of 16 columns a lane apart: columns j and 4 + j of each lane.
  static HWY_INLINE void pack(const float* unit, int64_t j, float* to) {
    const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                              _mm512_set1_epi32(kNibblePer));
    const __m512i low = _mm512_cvtps_epi32(_mm512_i32gather_ps(places, unit + j, 4));
    const __m512i high = _mm512_cvtps_epi32(_mm512_i32gather_ps(places, unit + 4 + j, 4));
    store(_mm512_mask_blend_epi16(0xAAAAAAAA, low, _mm512_slli_epi32(high, 16)), to);
  }
};

// Integers for INT8 activations. A unit lies in one group.
struct IntegerRow : NibbleRow {
  using Products = IntegerProducts;
  static constexpr bool kIsRare = false;
  static constexpr int64_t kVectors = 4;
  static constexpr bool kGrouped = true;
  static constexpr int64_t kUnitVectors = kVectors + 1;
  const uint16_t* line_index;

  IntegerRow(const NibbleShared& s, int64_t row, float* scratch)
      : NibbleRow(s, row, scratch),
        line_index(static_cast<const uint16_t*>(s.job.weight->line_index.data) +
                   row * s.job.weight->line_index.row_stride) {}

  class Unit {
   public:
    HWY_INLINE Unit(const IntegerRow& row, int64_t unit) : words_(row.codes, unit) {
      const int64_t group = row.shared.lanes.group_of(unit);
      const NibbleShared& shared = row.shared;
      __m512i sums;
      if (shared.has_lines) {
        sums = shared.lines.integer_sums(row.line_index[group]);
      } else {
        sums = _mm512_cvtps_epi32(_mm512_load_ps(shared.values));
        if (shared.has_zeros) sums = _mm512_sub_epi32(sums, _mm512_set1_epi32(static_cast<int>(row.zeros[group])));
      }
      // Both halves of a word hold its entry: the permutation may see any bit below the code.
      table_ = _mm512_shuffle_epi8(sums, _mm512_set4_epi32(0x0D0C0D0C, 0x09080908, 0x05040504, 0x01000100));
      scale_ = row.scales + group;
      codes_ = words_.load(0).raw;
    }
    HWY_INLINE __m512i next() {
      const int j = next_++;
      const __m512i index = j == 0   ? _mm512_slli_epi16(codes_, 1)
                            : j == 1 ? _mm512_srli_epi16(codes_, 3)
                            : j == 2 ? _mm512_srli_epi16(codes_, 7)
                                     : _mm512_srli_epi16(codes_, 11);
      return _mm512_permutexvar_epi16(index, table_);
    }
    HWY_INLINE V scale() const { return hn::Set(D(), *scale_); }

   private:
    NibbleWords words_;
    __m512i codes_, table_;
    const float* scale_;
    int next_ = 0;
  };
};
#endif

// ---- E4M3 -----------------------------------------------------------------------------------------------

// A unit lies in one group. Its vectors are the even columns, then the odd ones, of two halves.
struct E4m3Row {
  using Products = FloatProducts;
  static constexpr bool kIsRare = false;
  static constexpr int64_t kPer = 4;
  static constexpr int64_t kVectors = kPer;
  static constexpr int64_t kUnitVectors = kPer;
  static constexpr bool kGrouped = false;
  static constexpr int64_t kColumnStride = 2;
  static constexpr int64_t first_column(int64_t j) { return j % 2 * 2 * kLanes + j / 2; }
  struct Shared {
    const qp::Job& job;
    LaneScales lanes;
    explicit Shared(const qp::Job& j) : job(j), lanes(j.group, kPer) {}
  };
  const Shared& shared;
  const uint8_t* codes;
  const float* scales;

  E4m3Row(const Shared& s, int64_t row, float* scratch)
      : shared(s), codes(static_cast<const uint8_t*>(s.job.tile.weight) + row * s.job.row_bytes), scales(scratch) {
    load_scales(s.job, row, scratch);
  }

  class Unit {
   public:
    HWY_INLINE Unit(const E4m3Row& row, int64_t unit) {
      constexpr int64_t kBytes = kPer * kLanes;
      const uint8_t* from = row.codes + unit * kBytes;
      const float scale = row.scales[row.shared.lanes.group_of(unit)];
      hwy::Prefetch(from + lp::kPrefetchBytes);
      alignas(64) uint8_t padded[kBytes];
      if (HWY_UNLIKELY((unit + 1) * kBytes > row.shared.job.tile.k)) {
        std::memset(padded, 0, kBytes);
        std::memcpy(padded, from, row.shared.job.tile.k - unit * kBytes);
        from = padded;
      }
#if HWY_TARGET > HWY_AVX2  // no conversion from f16
      for (int64_t j = 0; j < kPer; ++j)
        for (int64_t i = 0; i < kLanes; ++i)
          values_[j * kLanes + i] = e4m3{from[first_column(j) + i * kColumnStride]}.to_float() * scale;
#else
      pairs_ = hn::BitCast(d16, hn::LoadU(hn::Repartition<uint8_t, D>(), from));
      scale_ = hn::Set(D(), scale * 256);
#endif
    }
#if HWY_TARGET > HWY_AVX2
    HWY_INLINE V next() { return hn::LoadU(D(), values_ + next_++ * kLanes); }

   private:
    float values_[kPer * kLanes];
    int64_t next_ = 0;
#else
    // Exponent and mantissa of E4M3 are those of an f16 that is 2^8 too small, subnormal numbers too.
    HWY_INLINE V next() {
      const hn::Half<decltype(d16)> half;
      const hn::Rebind<hwy::float16_t, D> dh;
      if (next_ % 2 == 0)
        halves_ = hn::And(hn::ShiftRight<1>(next_ == 0 ? hn::ShiftLeft<8>(pairs_) : pairs_),
                          hn::Set(d16, static_cast<int16_t>(0xBF80)));
      const auto part = next_++ % 2 == 0 ? hn::LowerHalf(half, halves_) : hn::UpperHalf(half, halves_);
      return hn::Mul(hn::PromoteTo(D(), hn::BitCast(dh, part)), scale_);
    }

   private:
    static constexpr hn::Repartition<int16_t, D> d16{};
    hn::Vec<hn::Repartition<int16_t, D>> pairs_, halves_;
    int next_ = 0;
    V scale_;
#endif
  };
};

// ---- Everything else ------------------------------------------------------------------------------------

// Element by element: wide bitvectors and groups of unusual sizes. Right, and slow.
template <bool kGrouped_>
struct AnyRow {
  using Products = FloatProducts;
  static constexpr bool kIsRare = true;
  static constexpr int64_t kPer = 8;
  static constexpr int64_t kVectors = kPer;
  static constexpr bool kGrouped = kGrouped_;
  static constexpr int64_t kUnitVectors = kPer + kGrouped;
  static constexpr int64_t kColumnStride = kPer;
  static constexpr int64_t first_column(int64_t j) { return j; }
  struct Shared {
    const qp::Job& job;
    LaneScales lanes;
    explicit Shared(const qp::Job& j) : job(j), lanes(j.group, kPer) {}
  };
  const Shared& shared;
  int64_t row;
  const float* scales;

  AnyRow(const Shared& s, int64_t at, float* scratch) : shared(s), row(at), scales(scratch) {
    if constexpr (kGrouped) load_scales(s.job, at, scratch);
  }

  class Unit {
   public:
    Unit(const AnyRow& row, int64_t unit) {
      const qp::Job& job = row.shared.job;
      const QuantizedReader& reader = *job.reader;
      const int64_t begin = unit * kPer * kLanes;
      int64_t group = -1;
      float scale = 1;
      for (int64_t i = 0; i < kPer * kLanes; ++i) {
        float value = 0;
        if (begin + i < job.tile.k) {
          value = reader.value(row.row, begin + i);
          if constexpr (!kGrouped) {
            if ((begin + i) / reader.group_size() != group) {
              group = (begin + i) / reader.group_size();
              scale = reader.scale(row.row, group);
            }
            value *= scale;
          }
        }
        values_[i % kPer * kLanes + i / kPer] = value;
      }
      if constexpr (kGrouped) scale_ = row.shared.lanes.load(row.scales, unit);
    }
    HWY_INLINE V next() { return hn::Load(D(), values_ + next_++ * kLanes); }
    HWY_INLINE V scale() const { return scale_; }

   private:
    alignas(64) float values_[kPer * kLanes];
    int64_t next_ = 0;
    V scale_ = hn::Zero(D());
  };
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
