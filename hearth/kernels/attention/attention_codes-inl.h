// SPDX-License-Identifier: Apache-2.0
// Reads one head of a coded KV format (kv_codec.h) into f32, for one instruction set. A number depends on its own code,
// step and base alone: which vector or tail decodes it changes no bit.
#if defined(HEARTH_KERNELS_ATTENTION_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_ATTENTION_CODES_INL_H_
#undef HEARTH_KERNELS_ATTENTION_CODES_INL_H_
#else
#define HEARTH_KERNELS_ATTENTION_CODES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hearth/kernels/attention/attention_tile-inl.h"
#include "hearth/tensor/kv_codec.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

// 32 codes of 16 bytes at `from`: to[i] = step * code + base.
HWY_INLINE void decode_32(const uint8_t* from, KvSteps steps, float* to) {
  const TileTag d;
  const TileVec step = hn::Set(d, steps.step), base = hn::Set(d, steps.base);
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < 32; ++i) {
    const TileVec code = hn::Set(d, static_cast<float>(from[i / 2] >> i % 2 * 4 & 15));
    hn::StoreU(hn::MulAdd(code, step, base), d, to + i);
  }
#else
  const hn::Full128<uint8_t> d8;
  const hn::Rebind<int32_t, TileTag> d32;
  const hn::Rebind<uint8_t, TileTag> part;
  const auto bytes = hn::LoadU(d8, from);
  const auto even = hn::And(bytes, hn::Set(d8, 15)), odd = hn::ShiftRight<4>(bytes);
  HWY_ALIGN uint8_t codes[32];
  hn::Store(hn::InterleaveLower(d8, even, odd), d8, codes);
  hn::Store(hn::InterleaveUpper(d8, even, odd), d8, codes + 16);
  for (int64_t i = 0; i < 32; i += kTileLanes) {
    const TileVec code = hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(part, codes + i)));
    hn::StoreU(hn::MulAdd(code, step, base), d, to + i);
  }
#endif
}

// to[i] = step * code + base for n 4-bit codes, n even.
HWY_INLINE void decode_int4(const std::byte* codes, KvSteps steps, int64_t n, float* to) {
  const uint8_t* from = static_cast<const uint8_t*>(static_cast<const void*>(codes));
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) decode_32(from + i / 2, steps, to + i);
  if (i == n) return;
  uint8_t rest[16] = {};
  float numbers[32];
  std::memcpy(rest, from + i / 2, static_cast<size_t>((n - i) / 2));
  decode_32(rest, steps, numbers);
  std::copy_n(numbers, n - i, to + i);
}

// kTileLanes E4M3 numbers in f32.
HWY_INLINE TileVec load_e4m3(const e4m3* from) {
  const TileTag d;
#if HWY_TARGET > HWY_AVX2  // no F16C
  float lanes[kTileLanes];
  for (int64_t i = 0; i < kTileLanes; ++i) lanes[i] = from[i].to_float();
  return hn::LoadU(d, lanes);
#else
  // Exponent and mantissa fit into an f16's, whose bias is greater by 8. Subnormals are read as such there, at no cost.
  const hn::Rebind<uint8_t, TileTag> d8;
  const hn::Rebind<uint16_t, TileTag> d16;
  const hn::Rebind<hwy::float16_t, TileTag> df16;
  const auto bits = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(from)));
  const auto magnitude = hn::And(bits, hn::Set(d16, 0x7F));
  const auto is_nan = hn::Eq(magnitude, hn::Set(d16, 0x7F));
  const auto number = hn::IfThenElse(is_nan, hn::Set(d16, 0x7E00), hn::ShiftLeft<7>(magnitude));
  const auto half = hn::Or(number, hn::ShiftLeft<8>(hn::And(bits, hn::Set(d16, 0x80))));
  return hn::Mul(hn::PromoteTo(d, hn::BitCast(df16, half)), hn::Set(d, 256.0f));
#endif
}

// to[i] = scale * number for n E4M3 numbers.
HWY_INLINE void decode_fp8(const std::byte* codes, float scale, int64_t n, float* to) {
  const TileTag d;
  const TileVec factor = hn::Set(d, scale);
  const e4m3* from = static_cast<const e4m3*>(static_cast<const void*>(codes));
  int64_t i = 0;
  for (; i + kTileLanes <= n; i += kTileLanes) hn::StoreU(hn::Mul(load_e4m3(from + i), factor), d, to + i);
  for (; i < n; ++i) to[i] = from[i].to_float() * scale;
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
