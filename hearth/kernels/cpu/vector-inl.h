// SPDX-License-Identifier: Apache-2.0
// What our Highway code shares: loads that widen f16 and bf16 to f32, stores that round to nearest even,
// and loops over the channels of a row with no reads or writes past its end. Included once per
// instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_CPU_VECTOR_INL_H_
#undef HEARTH_KERNELS_CPU_VECTOR_INL_H_
#else
#define HEARTH_KERNELS_CPU_VECTOR_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "hearth/tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const bf16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const f16* from) {
#if HWY_TARGET > HWY_AVX2  // no F16C: Highway's emulation turns infinities into numbers
  float lanes[hn::MaxLanes(D())];
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = from[i].to_float();
  return hn::LoadU(d, lanes);
#else
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
#endif
}

// The f32 whose upper half is `v` rounded to bf16, ties to even; a NaN stays one.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V round_to_bf16(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  return hn::BitCast(d, hn::And(result, hn::Set(du, 0xFFFF0000)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_f32(D d, V v, float* to) {
  hn::StoreU(v, d, to);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_f32(D d, V v, bf16* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToSigned<D> di;
  // Demotion saturates from signed values: 16 bits in the low half are in its range.
  const auto bits = hn::BitCast(di, hn::ShiftRight<16>(hn::BitCast(du, round_to_bf16(d, v))));
  hn::StoreU(hn::DemoteTo(d16, bits), d16, reinterpret_cast<uint16_t*>(to));
}

// body(d, i) for the vectors that cover channels [0, n): whole vectors, then four channels, then single
// ones. Each channel is read and written by exactly one call.
template <class Body>
HWY_INLINE void for_channels(int64_t n, const Body& body) {
  const FloatTag d;
  const hn::CappedTag<float, 4> d4;
  const hn::CappedTag<float, 1> d1;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), lanes4 = static_cast<int64_t>(hn::Lanes(d4));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(d, i);
  for (; i + lanes4 <= n; i += lanes4) body(d4, i);
  for (; i < n; ++i) body(d1, i);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
