// SPDX-License-Identifier: Apache-2.0
// Rows of 4-bit codes: integers and constant codes with scales of groups, and up to 4 bitvectors. quantized_rows-inl.h
// says what a row type has.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_NIBBLE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_NIBBLE_ROWS_INL_H_
#undef HEARTH_KERNELS_LINEAR_NIBBLE_ROWS_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_NIBBLE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <array>

#include "hearth/kernels/linear/bitvector_lines-inl.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/nibble_codes-inl.h"
#include "hearth/kernels/linear/row_products-inl.h"
#include "hearth/kernels/linear/row_scales-inl.h"

HWY_BEFORE_NAMESPACE();
#include "hearth/kernels/linear/vnni-inl.h"
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
