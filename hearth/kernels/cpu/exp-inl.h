// SPDX-License-Identifier: Apache-2.0
// exp for arguments of at most 0, as softmax and sigmoid need it: x = n ln 2 + r, |r| <= ln 2 / 2, with
// ln 2 in two parts (Cody and Waite, 1980) and a polynomial for exp(r) whose coefficients are the Taylor
// ones, accurate to 2^-24 from degree 7 on. At most 2 ulp from exp over the normal range (exp_test.cpp);
// below -87.33, where the result is no longer a normal float, it is 0. NaN gives NaN.
#if defined(HEARTH_KERNELS_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_CPU_EXP_INL_H_
#undef HEARTH_KERNELS_CPU_EXP_INL_H_
#else
#define HEARTH_KERNELS_CPU_EXP_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// REQUIRES: x <= 0 or NaN, in every lane.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_f32(D d, V x) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the sum.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
  const V n = hn::Sub(shifted, magic);
  // 0.693359375 has 9 significant bits: n times it is exact.
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::MulAdd(r, hn::Set(d, 1.0f / 5040), hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  // Times 2^n, in the exponent: n is in [-126, 0] wherever the result is kept.
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const V scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  const V result = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.33f)), scaled);
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
