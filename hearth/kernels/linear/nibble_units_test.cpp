// SPDX-License-Identifier: Apache-2.0
// Units of 4-bit weights, read as the tensor cores' operands are made of them: few operations on a word give numbers of
// E4M3, f16 or bf16, whose values are those of the canonical form. Label unit.
#include "hearth/kernels/linear/nibble_units.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "hearth/kernels/linear/quantized_for_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

uint32_t word_at(const uint8_t* unit, int vector, int lane, int word) {
  uint32_t bits;
  std::memcpy(&bits, unit + ((vector * 32 + lane) * 4 + word) * 4, 4);
  return bits;
}
float e4m3_byte(uint32_t word, int byte) { return e4m3{static_cast<uint8_t>(word >> 8 * byte)}.to_float(); }

// What the lane of row r (or r + 8) and q multiplies at columns: the first four of a word, the last four.
struct Decoded {
  float first[4], last[4];
};
Decoded decode(UnitOrder order, uint32_t word) {
  Decoded d;
  for (int i = 0; i < 4; ++i) switch (order) {
      case UnitOrder::kSigns: {
        d.first[i] = 512 * e4m3_byte(word & 0x87878787, i);
        d.last[i] = 512 * e4m3_byte(std::rotr(word, 4) & 0x87878787, i);
        break;
      }
      case UnitOrder::kLevels: {
        const float first = kC4Levels[word >> 4 * i & 7], last = kC4Levels[word >> (16 + 4 * i) & 7];
        d.first[i] = (word & 0x80808080) >> (8 * i + 7) & 1 ? -first : first;
        d.last[i] = (word << 4 & 0x80808080) >> (8 * i + 7) & 1 ? -last : last;
        break;
      }
      default:
        d.first[i] = static_cast<float>(word >> 4 * i & 15);
        d.last[i] = static_cast<float>(word >> (16 + 4 * i) & 15);
    }
  return d;
}

std::vector<WeightFormat> formats() {
  using enum WeightCode;
  std::vector<WeightFormat> all = {int4_format(kI4SignMagnitude, 128), int4_format(kC4, 256),
                                   int4_format(kU4, 128, true, DType::kBf16),
                                   int4_format(kI4SignMagnitude, 128, false, DType::kE4m3)};
  for (WeightFormat& format : all) format.act = ActFormat::kE4m3PerToken;
  all.push_back(int4_format(kU4, 128));
  all.push_back(int4_format(kU4, 128, true, DType::kF32));
  return all;
}

TEST(NibbleUnits, HaveTheCanonicalValues) {
  constexpr uint64_t kSeed = 17;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (const WeightFormat& format : formats())
    for (const int64_t n : {1, 16, 37}) {
      constexpr int64_t kK = 384;
      SCOPED_TRACE(fmt::format("{} n {}", to_string(format), n));
      const QuantizedMatrix matrix = random_matrix(format, n, kK, false, random);
      PlacedWeight placed(matrix);
      ASSERT_TRUE(has_units(format, kK));
      std::vector<uint8_t> units(static_cast<size_t>(units_bytes(format, n, kK)), 0xAA);
      pack_units_ref(placed.weight, units);
      const DType scale_dtype = unit_scale_dtype(format);
      const int64_t scale_bytes = dtype_bytes(scale_dtype, 1);
      for (int64_t row = 0; row < n; ++row) {
        std::vector<float> wanted(kK);
        matrix.dequantize_row(row, wanted);
        for (int64_t u = 0; u < kK / kUnitColumns; ++u) {
          const uint8_t* const unit = units.data() + (row / 16 * (kK / kUnitColumns) + u) * unit_bytes(format);
          const int r = static_cast<int>(row % 8), high = static_cast<int>(row % 16 / 8);
          const uint8_t* const at = unit + kUnitCodeBytes + (2 * r + high) * scale_bytes;
          float scale = 0;
          if (scale_dtype == DType::kF32) std::memcpy(&scale, at, 4);
          if (scale_dtype == DType::kF16) scale = f16{static_cast<uint16_t>(at[0] | at[1] << 8)}.to_float();
          if (scale_dtype == DType::kBf16) scale = bf16{static_cast<uint16_t>(at[0] | at[1] << 8)}.to_float();
          const float zero = format.code != WeightCode::kU4 ? 0
                             : format.has_zero_point
                                 ? static_cast<float>(unit[kUnitCodeBytes + 16 * scale_bytes + 2 * r + high])
                                 : 8;
          for (int step = 0; step < 4; ++step)
            for (int q = 0; q < 4; ++q) {
              const Decoded d = decode(unit_order(format), word_at(unit, step / 2, 4 * r + q, step % 2 * 2 + high));
              for (int i = 0; i < 4; ++i) {
                // The columns that the instructions give a lane: four neighbours and those 16 behind in E4M3, two and
                // those 8 behind in bf16.
                const int64_t base = u * kUnitColumns + 32 * step;
                const bool bf16_order = unit_order(format) == UnitOrder::kOffsetsBf16;
                const int64_t first = bf16_order ? base + 8 * i + 2 * q : base + 4 * q + i;
                const int64_t last = bf16_order ? first + 1 : base + 16 + 4 * q + i;
                ASSERT_EQ((d.first[i] - zero) * scale, wanted[static_cast<size_t>(first)]) << row << " " << first;
                ASSERT_EQ((d.last[i] - zero) * scale, wanted[static_cast<size_t>(last)]) << row << " " << last;
              }
            }
        }
      }
    }
}

// f16 pairs of signs and magnitudes: bits 10 to 8 of a number too small to be normal, or of the first that are.
TEST(NibbleUnits, SignsAreF16Pairs) {
  for (uint32_t code = 0; code < 16; ++code)
    for (int place = 0; place < 8; ++place) {
      uint32_t codes[8] = {};
      codes[place] = code;
      const uint32_t word = pack_word(UnitOrder::kSigns, codes);
      const uint32_t pairs[4] = {word, std::rotl(word, 8), std::rotr(word, 4), std::rotl(word, 4)};
      constexpr int kPlaces[4][2] = {{1, 3}, {0, 2}, {5, 7}, {4, 6}};
      for (int p = 0; p < 4; ++p)
        for (int half = 0; half < 2; ++half) {
          const float value = f16{static_cast<uint16_t>((pairs[p] & 0x87008700) >> 16 * half)}.to_float();
          const float wanted = kPlaces[p][half] == place ? (code & 8 ? -1.0f : 1.0f) * static_cast<float>(code & 7) : 0;
          EXPECT_EQ(value * 65536, wanted) << code << " at " << place << ", pair " << p << " half " << half;
        }
    }
}

TEST(NibbleUnits, ExistForGroupsOf128Columns) {
  WeightFormat format = int4_format(WeightCode::kU4, 128, true);
  EXPECT_TRUE(has_units(format, 256));
  EXPECT_FALSE(has_units(format, 200));
  EXPECT_EQ(unit_bytes(format), 1024 + 32 + 16);
  EXPECT_EQ(units_bytes(format, 17, 256), 2 * 2 * 1072);
  format.group_k = 64;
  EXPECT_FALSE(has_units(format, 256));
  format = int4_format(WeightCode::kI4SignMagnitude, 128);
  EXPECT_FALSE(has_units(format, 256)) << "activations as they are";
}

}  // namespace
}  // namespace hearth
