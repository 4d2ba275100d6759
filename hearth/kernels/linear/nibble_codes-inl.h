// SPDX-License-Identifier: Apache-2.0
// 4-bit codes of a row of weights as words whose low 4 bits are a column each, and the table of 16 values that they
// choose from. No read beyond the last code of W.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_NIBBLE_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_NIBBLE_CODES_INL_H_
#undef HEARTH_KERNELS_LINEAR_NIBBLE_CODES_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_NIBBLE_CODES_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/linear_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

namespace qp = quantized_plan;

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

// The codes of a row: word i of a unit holds columns 8 i to 8 i + 7, the first in its low bits. Behind the last column
// of a row may lie codes of the next: they meet zeros of x. The last units of W, which would be read beyond its end,
// are copied.
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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
