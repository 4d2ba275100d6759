// SPDX-License-Identifier: Apache-2.0
// The loops are kept free of branches where the compiler can then use SIMD: the widening directions, and
// f32 -> bf16, and the search for numbers that are none.
#include "hearth/checkpoint/convert.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace hearth {
namespace {

// binary16 in the upper bits of a float's exponent and mantissa is the value times 2^-112, subnormals
// too; the product with 2^112 is exact. Infinity and NaN keep their mantissa under a full exponent.
float widen(f16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFF) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x7C00u << 13 ? magnitude | 0x7F800000 : finite));
}
float widen(bf16 value) { return value.to_float(); }
float widen(float value) { return value; }

template <class From, class To>
void convert(std::span<const std::byte> src, std::span<std::byte> dst) {
  const size_t count = src.size() / sizeof(From);
  for (size_t i = 0; i < count; ++i) {
    From from;
    std::memcpy(&from, src.data() + i * sizeof(From), sizeof(From));  // any alignment
    const To to = from_float<To>(widen(from));
    std::memcpy(dst.data() + i * sizeof(To), &to, sizeof(To));
  }
}

using Converter = void (*)(std::span<const std::byte>, std::span<std::byte>);

template <class From>
Converter converter_to(DType dst) {
  switch (dst) {
    case DType::kF32: return convert<From, float>;
    case DType::kF16: return convert<From, f16>;
    case DType::kBf16: return convert<From, bf16>;
    default: return nullptr;
  }
}

Converter converter_of(DType src, DType dst) {
  switch (src) {
    case DType::kF32: return converter_to<float>(dst);
    case DType::kF16: return converter_to<f16>(dst);
    case DType::kBf16: return converter_to<bf16>(dst);
    default: return nullptr;
  }
}

// A float whose exponent bits are all set is infinite or not a number, an E4M3 with all bits of its magnitude set.
// Looks at kBlock elements at once and element by element only in a block that has one.
template <class Bits>
std::optional<int64_t> find_full_exponent(std::span<const std::byte> values, Bits exponent) {
  constexpr int64_t kBlock = 1024;
  const int64_t count = static_cast<int64_t>(values.size() / sizeof(Bits));
  const auto full = [&](int64_t i) {
    Bits bits;
    std::memcpy(&bits, values.data() + static_cast<size_t>(i) * sizeof(Bits), sizeof(Bits));  // any alignment
    return static_cast<Bits>((bits & exponent) == exponent);
  };
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Bits any = 0;
    for (int64_t i = begin; i < end; ++i) any |= full(i);
    if (any == 0) continue;
    for (int64_t i = begin; i < end; ++i)
      if (full(i) != 0) return i;
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> find_non_finite(DType dtype, std::span<const std::byte> values) {
  switch (dtype) {
    case DType::kF32: return find_full_exponent<uint32_t>(values, 0x7F800000);
    case DType::kF16: return find_full_exponent<uint16_t>(values, 0x7C00);
    case DType::kBf16: return find_full_exponent<uint16_t>(values, 0x7F80);
    case DType::kE4m3: return find_full_exponent<uint8_t>(values, 0x7F);
    default: return std::nullopt;
  }
}

Status convert_floats(DType src_dtype, std::span<const std::byte> src, DType dst_dtype, std::span<std::byte> dst) {
  const Converter converter = converter_of(src_dtype, dst_dtype);
  if (converter == nullptr) {
    return unsupported("conversion of {} to {}; supported are f32, f16 and bf16", dtype_name(src_dtype),
                       dtype_name(dst_dtype));
  }
  const auto src_element = static_cast<size_t>(dtype_bytes(src_dtype, 1));
  const auto dst_element = static_cast<size_t>(dtype_bytes(dst_dtype, 1));
  HEARTH_CHECK(src.size() % src_element == 0 && src.size() / src_element * dst_element == dst.size(),
               "{} bytes of {} converted to {} bytes of {}", src.size(), dtype_name(src_dtype), dst.size(),
               dtype_name(dst_dtype));
  if (src.empty()) return {};
  if (src_dtype == dst_dtype) {
    std::memcpy(dst.data(), src.data(), src.size());
  } else {
    converter(src, dst);
  }
  return {};
}

}  // namespace hearth
