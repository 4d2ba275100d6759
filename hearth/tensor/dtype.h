// SPDX-License-Identifier: Apache-2.0
// Element types of tensors and the scalar types of the 8- and 16-bit floats, with conversions that
// round to nearest even. Compiles for host and device.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace hearth {

enum class DType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBf16,
  kE4m3,
  kE5m2,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  kU4,  // two per byte, the even element in the low nibble
};

// Bits of one element.
int64_t dtype_bits(DType dtype);
// Bytes of `count` elements; packed types round up to whole bytes.
int64_t dtype_bytes(DType dtype, int64_t count);
// Our name: f32, bf16, e4m3, ...
std::string_view dtype_name(DType dtype);
// The inverse of dtype_name.
std::optional<DType> dtype_from_name(std::string_view name);

// bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits = 0;

  static constexpr bf16 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>(u >> 16 | 0x40)};  // quiet NaN
    return {static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16)};
  }
  constexpr float to_float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  friend constexpr bool operator==(bf16, bf16) = default;
};

// A small binary float with `kExponent` exponent and `kMantissa` mantissa bits.
namespace detail {

// Rounds `value` to the nearest multiple of the format's spacing at its magnitude, ties to even, and
// returns the bits without sign. Values above the largest finite number give `overflow_bits`.
template <int kExponent, int kMantissa>
constexpr uint32_t encode_magnitude(float value, uint32_t max_finite_bits, uint32_t overflow_bits) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  const uint32_t u = std::bit_cast<uint32_t>(value) & 0x7FFFFFFF;
  const int exponent = static_cast<int>(u >> 23) - 127;
  // Distance from float's 23 mantissa bits to the format's, larger where the result is subnormal.
  int shift = 23 - kMantissa;
  uint32_t mantissa = (u & 0x7FFFFF) | (u >> 23 ? 0x800000u : 0u);
  uint32_t base = 0;
  if (exponent >= 1 - kBias) {
    base = static_cast<uint32_t>(exponent + kBias - 1) << kMantissa;  // the implicit one adds the last step
  } else {
    shift += 1 - kBias - exponent;
    if (shift > 24) return 0;  // below half of the smallest subnormal
  }
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rounded = (mantissa + half - 1 + (mantissa >> shift & 1)) >> shift;
  const uint32_t bits = base + rounded;
  return bits > max_finite_bits ? overflow_bits : bits;
}

template <int kExponent, int kMantissa>
constexpr float decode_magnitude(uint32_t bits) {
  constexpr int kBias = (1 << (kExponent - 1)) - 1;
  const uint32_t exponent = bits >> kMantissa, mantissa = bits & ((1u << kMantissa) - 1);
  if (exponent == 0) {
    // Exact: the smallest subnormal is a power of two within float's normal range.
    return static_cast<float>(mantissa) *
           std::bit_cast<float>(static_cast<uint32_t>(127 + 1 - kBias - kMantissa) << 23);
  }
  return std::bit_cast<float>((exponent + 127 - kBias) << 23 | mantissa << (23 - kMantissa));
}

}  // namespace detail

// IEEE binary16.
struct f16 {
  uint16_t bits = 0;

  static constexpr f16 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = u >> 16 & 0x8000;
    if ((u & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
    return {static_cast<uint16_t>(sign | detail::encode_magnitude<5, 10>(value, 0x7BFF, 0x7C00))};
  }
  constexpr float to_float() const {
    const uint32_t magnitude = bits & 0x7FFF, sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    if (magnitude >= 0x7C00) return std::bit_cast<float>(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(detail::decode_magnitude<5, 10>(magnitude)));
  }
  friend constexpr bool operator==(f16, f16) = default;
};

// OCP E4M3 ("fn": no infinities, one NaN pattern per sign, largest 448). Conversion saturates, as the
// hardware's satfinite conversion does.
struct e4m3 {
  uint8_t bits = 0;

  static constexpr e4m3 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = u >> 24 & 0x80;
    if ((u & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint8_t>(sign | 0x7F)};
    return {static_cast<uint8_t>(sign | detail::encode_magnitude<4, 3>(value, 0x7E, 0x7E))};
  }
  constexpr float to_float() const {
    const uint32_t magnitude = bits & 0x7F, sign = static_cast<uint32_t>(bits & 0x80) << 24;
    if (magnitude == 0x7F) return std::bit_cast<float>(sign | 0x7FC00000);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(detail::decode_magnitude<4, 3>(magnitude)));
  }
  friend constexpr bool operator==(e4m3, e4m3) = default;
};

// OCP E5M2: with infinities. Conversion saturates to the largest finite value, 57344.
struct e5m2 {
  uint8_t bits = 0;

  static constexpr e5m2 from_float(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const uint32_t sign = u >> 24 & 0x80;
    if ((u & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint8_t>(sign | 0x7F)};
    return {static_cast<uint8_t>(sign | detail::encode_magnitude<5, 2>(value, 0x7B, 0x7B))};
  }
  constexpr float to_float() const {
    const uint32_t magnitude = bits & 0x7F, sign = static_cast<uint32_t>(bits & 0x80) << 24;
    if (magnitude >= 0x7C) return std::bit_cast<float>(sign | 0x7F800000 | (magnitude & 3) << 21);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(detail::decode_magnitude<5, 2>(magnitude)));
  }
  friend constexpr bool operator==(e5m2, e5m2) = default;
};

// The DType of a scalar type. Another type does not compile.
template <class T>
inline constexpr DType kDTypeOf = [] {
  static_assert(sizeof(T) == 0, "no DType of this type");
  return DType();
}();
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<float> = DType::kF32;
template <>
inline constexpr DType kDTypeOf<f16> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<bf16> = DType::kBf16;
template <>
inline constexpr DType kDTypeOf<e4m3> = DType::kE4m3;
template <>
inline constexpr DType kDTypeOf<e5m2> = DType::kE5m2;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int16_t> = DType::kI16;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::kI8;
template <>
inline constexpr DType kDTypeOf<uint64_t> = DType::kU64;
template <>
inline constexpr DType kDTypeOf<uint32_t> = DType::kU32;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::kU16;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::kU8;
template <>
inline constexpr DType kDTypeOf<bool> = DType::kBool;

// float <-> any float scalar type, for code that is generic over them.
template <class T>
constexpr T from_float(float value) {
  return T::from_float(value);
}
template <>
constexpr float from_float<float>(float value) {
  return value;
}
constexpr float to_float(float value) { return value; }
template <class T>
constexpr float to_float(T value) {
  return value.to_float();
}

}  // namespace hearth
