// SPDX-License-Identifier: Apache-2.0
// Rows of whatever no other row type serves. quantized_rows-inl.h says what a row type has.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_ANY_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_ANY_ROW_INL_H_
#undef HEARTH_KERNELS_LINEAR_ANY_ROW_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_ANY_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/row_products-inl.h"
#include "hearth/kernels/linear/row_scales-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

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
