// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hearth/base/random.h"
#include "hearth/tensor/shape.h"

namespace hearth {
namespace {

// The nearest representable value by exhaustive search in double, ties to the even code.
template <class T>
uint32_t nearest_code(double value, uint32_t max_finite_bits) {
  uint32_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (uint32_t code = 0; code <= max_finite_bits; ++code) {
    const double distance = std::abs(static_cast<double>(T{static_cast<decltype(T::bits)>(code)}.to_float()) - value);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = code;
      best_distance = distance;
    }
  }
  return best;
}

template <class T>
void check_round_trip_and_rounding(uint32_t max_finite_bits) {
  for (uint32_t code = 0; code <= max_finite_bits; ++code) {
    const T value{static_cast<decltype(T::bits)>(code)};
    EXPECT_EQ(T::from_float(value.to_float()).bits, code);
    if (code == max_finite_bits) break;
    // The midpoint to the next value goes to the even one of the two, a nudge beyond it to the near one.
    const float low = value.to_float(), high = T{static_cast<decltype(T::bits)>(code + 1)}.to_float();
    const float middle = low + (high - low) / 2;
    EXPECT_EQ(T::from_float(middle).bits, code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(T::from_float(std::nextafter(middle, high)).bits, code + 1) << code;
    EXPECT_EQ(T::from_float(std::nextafter(middle, low)).bits, code) << code;
  }
}

TEST(DType, E4m3RoundsToNearestEven) {
  check_round_trip_and_rounding<e4m3>(0x7E);
  EXPECT_EQ(e4m3{0x7E}.to_float(), 448.0f);
  EXPECT_EQ(e4m3{0x01}.to_float(), 0x1p-9f);
  EXPECT_EQ(e4m3::from_float(1e6f).bits, 0x7E);
  EXPECT_EQ(e4m3::from_float(-1e6f).bits, 0xFE);
  EXPECT_TRUE(std::isnan(e4m3::from_float(NAN).to_float()));
  // Decision 3 of the design: the codes 0..15 are exact multiples of 2^-9.
  for (int u = 0; u < 16; ++u) EXPECT_EQ(e4m3{static_cast<uint8_t>(u)}.to_float(), static_cast<float>(u) * 0x1p-9f);
}

TEST(DType, E5m2RoundsToNearestEven) {
  check_round_trip_and_rounding<e5m2>(0x7B);
  EXPECT_EQ(e5m2{0x7B}.to_float(), 57344.0f);
  EXPECT_TRUE(std::isinf(e5m2{0x7C}.to_float()));
}

TEST(DType, F16RoundsToNearestEven) {
  check_round_trip_and_rounding<f16>(0x7BFF);
  EXPECT_EQ(f16{0x7BFF}.to_float(), 65504.0f);
  EXPECT_EQ(f16::from_float(65519.0f).bits, 0x7BFF);
  EXPECT_EQ(f16::from_float(65520.0f).bits, 0x7C00);
  EXPECT_TRUE(std::isinf(f16::from_float(INFINITY).to_float()));
  EXPECT_TRUE(std::isnan(f16::from_float(NAN).to_float()));
}

TEST(DType, Bf16RoundsToNearestEven) {
  check_round_trip_and_rounding<bf16>(0x7F7E);
  EXPECT_TRUE(std::isnan(bf16::from_float(NAN).to_float()));
  EXPECT_TRUE(std::isinf(bf16::from_float(std::numeric_limits<float>::max()).to_float()));
}

TEST(DType, RandomValuesRoundToTheNearestCode) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  for (int i = 0; i < 2000; ++i) {
    const float value = std::exp2(random.uniform(-12.0f, 8.7f));
    EXPECT_EQ(e4m3::from_float(value).bits, nearest_code<e4m3>(value, 0x7E)) << value;
    EXPECT_EQ(e4m3::from_float(-value).bits, nearest_code<e4m3>(value, 0x7E) | 0x80) << value;
    EXPECT_EQ(e5m2::from_float(value).bits, nearest_code<e5m2>(value, 0x7B)) << value;
  }
}

TEST(DType, NamesAreUniqueAndReadBack) {
  for (int d = 0; d <= static_cast<int>(DType::kU4); ++d) EXPECT_EQ(dtype_from_name(dtype_name(DType(d))), DType(d));
  EXPECT_EQ(dtype_from_name("float"), std::nullopt);
  EXPECT_EQ(dtype_bytes(DType::kU4, 3), 2);
}

TEST(TensorView, SlicesRowsAndColumns) {
  float data[6] = {0, 1, 2, 3, 4, 5};
  const TensorView view(data, DType::kF32, {2, 3});
  EXPECT_EQ(*view.slice_cols(1, 2).row<float>(1), 4);
  EXPECT_EQ(view.slice_cols(1, 2).row_stride, 3);
  EXPECT_EQ(*view.slice_rows(1, 1).row<float>(0), 3);
  EXPECT_EQ(to_string(view.shape), "[2, 3]");
  EXPECT_TRUE(view.is_dense());
  EXPECT_FALSE(view.slice_cols(1, 2).is_dense());
}

}  // namespace
}  // namespace hearth
