// SPDX-License-Identifier: Apache-2.0
// How the vectors of a row of weights are multiplied with x: in f32, or as pairs of 16-bit integers.
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_ROW_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_ROW_PRODUCTS_INL_H_
#undef HEARTH_KERNELS_LINEAR_ROW_PRODUCTS_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_ROW_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include "hearth/kernels/linear/linear_tile-inl.h"
#include "hearth/kernels/linear/nibble_codes-inl.h"

HWY_BEFORE_NAMESPACE();
#include "hearth/kernels/linear/vnni-inl.h"
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

// Products with x in f32.
struct FloatProducts {
  using Sum = V;
  static HWY_INLINE V zero() { return hn::Zero(D()); }
  static HWY_INLINE void store(V v, float* to) { hn::Store(v, D(), to); }
  static HWY_INLINE V load(const float* from) { return hn::Load(D(), from); }
  static HWY_INLINE V multiply_add(V w, const float* x, V sum) { return hn::MulAdd(w, hn::Load(D(), x), sum); }
  static HWY_INLINE V to_float(V sum) { return sum; }
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
#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
