// SPDX-License-Identifier: Apache-2.0
// Rows of E4M3 codes. quantized_rows-inl.h says what a row type has.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_E4M3_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_E4M3_ROW_INL_H_
#undef HEARTH_KERNELS_LINEAR_E4M3_ROW_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_E4M3_ROW_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstring>

#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/row_products-inl.h"
#include "hearth/kernels/linear/row_scales-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
