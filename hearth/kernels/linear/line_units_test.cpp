// SPDX-License-Identifier: Apache-2.0
// Units of weights of bitvectors, read as the tensor cores' operands are made of them, have the numbers of the
// canonical form. Label unit.
#include "hearth/kernels/linear/line_units.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "hearth/kernels/linear/quantized_for_test.h"

namespace hearth {
namespace {

using namespace testing;  // quantized_for_test.h

WeightFormat lines_in_int8(int bitvectors) {
  WeightFormat format = line_format(bitvectors, 128, true);
  format.act = ActFormat::kI8PerGroup;
  return format;
}

TEST(LineUnits, HaveTheCanonicalValues) {
  constexpr uint64_t kSeed = 18;
  constexpr int64_t kK = 384, kUnits = kK / kUnitColumns;
  Random random(kSeed);
  for (const int bitvectors : {2, 3, 4})
    for (const int64_t n : {1, 16, 37}) {
      SCOPED_TRACE(fmt::format("seed {} bitvectors {} n {}", kSeed, bitvectors, n));
      const WeightFormat format = lines_in_int8(bitvectors);
      const QuantizedMatrix matrix = random_matrix(format, n, kK, false, random);
      PlacedWeight placed(matrix);
      ASSERT_TRUE(has_line_units(format, kK));
      std::vector<uint8_t> units(static_cast<size_t>(line_units_bytes(format, n, kK)), 0xAA);
      pack_line_units_ref(placed.weight, units);
      const uint8_t* const table = units.data() + line_table_at(n, kK);
      for (int64_t row = 0; row < n; ++row) {
        std::vector<float> wanted(kK);
        matrix.dequantize_row(row, wanted);
        const int r = static_cast<int>(row % 8), high = static_cast<int>(row % 16 / 8);
        for (int64_t u = 0; u < kUnits; ++u) {
          const uint8_t* const unit = units.data() + (row / 16 * kUnits + u) * kLineUnitBytes;
          uint16_t at;
          std::memcpy(&at, unit + kUnitCodeBytes + (2 * r + high) * 2, 2);
          ASSERT_LT(at, units.size() - static_cast<size_t>(line_table_at(n, kK)));
          UnitLine line;
          std::memcpy(&line, table + at, sizeof(line));
          for (int step = 0; step < 4; ++step)
            for (int q = 0; q < 4; ++q) {
              uint32_t word;
              std::memcpy(&word, unit + ((step / 2 * 32 + 4 * r + q) * 4 + step % 2 * 2 + high) * 4, 4);
              for (int i = 0; i < 8; ++i) {
                const int top = static_cast<int>(i < 4 ? word >> (8 * i + 7) : word >> (8 * (i - 4) + 3)) & 1;
                const int number = line.sum[word >> 4 * i & 7] + top * line.top;
                const int64_t column = u * kUnitColumns + 32 * step + 16 * (i / 4) + 4 * q + i % 4;
                ASSERT_EQ(static_cast<float>(number) * (line.scale * 128), wanted[static_cast<size_t>(column)])
                    << row << " " << column;
              }
            }
        }
      }
    }
}

TEST(LineUnits, ExistForIntegerLinesOf128Columns) {
  WeightFormat format = lines_in_int8(4);
  EXPECT_TRUE(has_line_units(format, 256));
  EXPECT_FALSE(has_line_units(format, 200));
  EXPECT_EQ(line_units_bytes(format, 17, 256), 2 * 2 * 1056 + 50 * 16);
  format.lines = 4097;
  EXPECT_FALSE(has_line_units(format, 256));
  EXPECT_FALSE(has_line_units(lines_in_int8(6), 256));
  format = lines_in_int8(4), format.integer_lines = false;
  EXPECT_FALSE(has_line_units(format, 256));
  format = lines_in_int8(4), format.group_k = 256;
  EXPECT_FALSE(has_line_units(format, 256));
  EXPECT_FALSE(has_line_units(line_format(4, 128, true), 256)) << "activations as they are";
}

}  // namespace
}  // namespace hearth
