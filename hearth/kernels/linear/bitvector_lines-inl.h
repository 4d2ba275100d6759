// SPDX-License-Identifier: Apache-2.0
// The coefficient lines of up to 4 bitvectors as tables of the 16 sums that their codes stand for.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_BITVECTOR_LINES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_BITVECTOR_LINES_INL_H_
#undef HEARTH_KERNELS_LINEAR_BITVECTOR_LINES_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_BITVECTOR_LINES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/kernels/linear/nibble_codes-inl.h"

HWY_BEFORE_NAMESPACE();
#include "hearth/kernels/linear/vnni-inl.h"
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

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

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
