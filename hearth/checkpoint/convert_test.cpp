// SPDX-License-Identifier: Apache-2.0
// Conversions by value: chosen numbers whose results follow from IEEE 754, and all 16-bit patterns.
#include "hearth/checkpoint/convert.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

template <class To, class From>
std::vector<To> convert(const std::vector<From>& src) {
  std::vector<To> dst(src.size());
  const auto status = convert_floats(kDTypeOf<From>, std::as_bytes(std::span(src)), kDTypeOf<To>,
                                     std::as_writable_bytes(std::span(dst)));
  EXPECT_TRUE(status) << status.error().message;
  return dst;
}

TEST(ConvertFloats, WidensHalfByItsDefinition) {
  std::vector<f16> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<uint16_t>(i);
  const auto floats = convert<float>(all);
  for (size_t i = 0; i < all.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10 & 31), mantissa = static_cast<int>(i & 1023);
    const double sign = i >> 15 ? -1 : 1;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(floats[i])) << i;
      continue;
    }
    const double value = exponent == 31  ? std::numeric_limits<double>::infinity()
                         : exponent == 0 ? std::ldexp(mantissa, -24)
                                         : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(floats[i], sign * value) << i;
    ASSERT_EQ(std::signbit(floats[i]), i >> 15 != 0) << i;
  }
}

TEST(ConvertFloats, SixteenBitsSurviveTheWayThroughFloat) {
  std::vector<f16> halves(65536);
  std::vector<bf16> brains(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i].bits = brains[i].bits = static_cast<uint16_t>(i);
  const auto halves_back = convert<f16>(convert<float>(halves));
  const auto brains_back = convert<bf16>(convert<float>(brains));
  for (size_t i = 0; i < halves.size(); ++i) {
    // NaNs come back as NaNs of the same sign, all else bit for bit.
    const bool half_nan = (i & 0x7FFF) > 0x7C00, brain_nan = (i & 0x7FFF) > 0x7F80;
    ASSERT_EQ(halves_back[i].bits >> 15, i >> 15);
    ASSERT_EQ(brains_back[i].bits >> 15, i >> 15);
    if (half_nan) {
      ASSERT_GT(halves_back[i].bits & 0x7FFF, 0x7C00) << i;
    } else {
      ASSERT_EQ(halves_back[i].bits, i);
    }
    if (brain_nan) {
      ASSERT_GT(brains_back[i].bits & 0x7FFF, 0x7F80) << i;
    } else {
      ASSERT_EQ(brains_back[i].bits, i);
    }
  }
}

TEST(ConvertFloats, RoundsToNearestEven) {
  // bf16 has 8 significant bits, f16 has 11.
  const auto to_bf16 = convert<bf16>(std::vector<float>{1.0f, 1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 1 + 0x1p-8f + 0x1p-23f,
                                                        -1 - 0x1p-8f, 0x1.FFp127f, kInf, -kInf, -0.0f});
  const std::vector<float> bf16_values = {1.0f, 1.0f, 1 + 0x1p-6f, 1 + 0x1p-7f, -1.0f, kInf, kInf, -kInf, -0.0f};
  for (size_t i = 0; i < bf16_values.size(); ++i) EXPECT_EQ(to_bf16[i].to_float(), bf16_values[i]) << i;
  EXPECT_TRUE(std::signbit(to_bf16.back().to_float()));
  const auto to_f16 = convert<f16>(std::vector<float>{1 + 0x1p-11f, 1 + 3 * 0x1p-11f, 65504, 65519.996f, 65520, -1e9f,
                                                      0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 3 * 0x1p-25f, kInf});
  const std::vector<float> f16_values = {1.0f,     1 + 0x1p-9f, 65504,    65504,    kInf, -kInf,
                                         0x1p-24f, 0,           0x1p-24f, 0x1p-23f, kInf};
  for (size_t i = 0; i < f16_values.size(); ++i) EXPECT_EQ(to_f16[i].to_float(), f16_values[i]) << i;
  // f16 -> bf16 rounds once: 1 + 2^-8 lies between two bf16 numbers, the even one is 1.
  const auto half_to_brain = convert<bf16>(convert<f16>(std::vector<float>{1 + 0x1p-8f, 1 + 0x1p-8f + 0x1p-10f}));
  EXPECT_EQ(half_to_brain[0].to_float(), 1.0f);
  EXPECT_EQ(half_to_brain[1].to_float(), 1 + 0x1p-7f);
  const auto nans =
      convert<bf16>(std::vector<float>{std::bit_cast<float>(0x7F800001u), std::bit_cast<float>(0xFFFFFFFFu)});
  EXPECT_TRUE(std::isnan(nans[0].to_float()));
  EXPECT_TRUE(std::isnan(nans[1].to_float()));
}

TEST(ConvertFloats, TakesAnyAlignmentAndLeavesTheRestAlone) {
  const std::vector<float> values = {1, -2, 0.5f, 3};
  std::vector<std::byte> src(1 + sizeof(float) * values.size());
  std::memcpy(src.data() + 1, values.data(), src.size() - 1);
  std::vector<std::byte> dst(3 + 2 * values.size() + 1, std::byte{0xEE});
  ASSERT_TRUE(convert_floats(DType::kF32, std::span(src).subspan(1), DType::kBf16,
                             std::span(dst).subspan(3, 2 * values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    bf16 value;
    std::memcpy(&value, dst.data() + 3 + 2 * i, 2);
    EXPECT_EQ(value.to_float(), values[i]);
  }
  EXPECT_EQ(dst[2], std::byte{0xEE});
  EXPECT_EQ(dst.back(), std::byte{0xEE});
  EXPECT_EQ(convert<float>(values), values);
  EXPECT_TRUE(convert_floats(DType::kF32, {}, DType::kF16, {}));
}

TEST(ConvertFloats, NamesWhatItDoesNotConvert) {
  EXPECT_ERROR(convert_floats(DType::kI8, {}, DType::kF32, {}), kUnsupported, "conversion of i8 to f32");
  EXPECT_ERROR(convert_floats(DType::kF32, {}, DType::kE4m3, {}), kUnsupported, "conversion of f32 to e4m3");
}

template <class T>
std::optional<int64_t> find(const std::vector<T>& values) {
  return find_non_finite(kDTypeOf<T>, std::as_bytes(std::span(values)));
}

// Every pattern of 16 bits alone: found exactly where its value is not finite.
TEST(FindNonFinite, JudgesEveryPattern) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const f16 half{static_cast<uint16_t>(i)};
    const bf16 brain{static_cast<uint16_t>(i)};
    ASSERT_EQ(find<f16>({half}).has_value(), !std::isfinite(half.to_float())) << i;
    ASSERT_EQ(find<bf16>({brain}).has_value(), !std::isfinite(brain.to_float())) << i;
    const float f = std::bit_cast<float>(i << 16 | 1);
    ASSERT_EQ(find<float>({f}).has_value(), !std::isfinite(f)) << i;
  }
}

TEST(FindNonFinite, NamesTheFirstPlaceAtAnySizeAndAlignment) {
  for (const size_t size : {1u, 7u, 1023u, 1024u, 1025u, 3000u}) {
    std::vector<float> values(size, std::numeric_limits<float>::max());
    EXPECT_EQ(find(values), std::nullopt) << size;
    for (const size_t place : {size_t{0}, size / 2, size - 1}) {
      auto bad = values;
      bad[place] = -kInf;
      bad[size - 1] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_EQ(find(bad), static_cast<int64_t>(place)) << size;
      std::vector<std::byte> shifted(size * sizeof(float) + 1);
      std::memcpy(shifted.data() + 1, bad.data(), size * sizeof(float));
      EXPECT_EQ(find_non_finite(DType::kF32, std::span(shifted).subspan(1)), static_cast<int64_t>(place)) << size;
    }
  }
  EXPECT_EQ(find(std::vector<float>()), std::nullopt);
  // Codes of other types are no such numbers.
  EXPECT_EQ(find(std::vector<uint8_t>(64, 0xFF)), std::nullopt);
}

}  // namespace
}  // namespace hearth
