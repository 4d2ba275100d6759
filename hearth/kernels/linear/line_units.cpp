// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/line_units.h"

#include <algorithm>
#include <cstring>

#include "hearth/base/check.h"

namespace hearth {

bool has_line_units(const WeightFormat& format, int64_t k) {
  return format.code == WeightCode::kBitvectors && format.integer_lines && format.bitvectors <= 4 &&
         format.lines <= kMostUnitLines && format.group_k == kUnitColumns && k > 0 && k % kUnitColumns == 0 &&
         format.scale_layout == ScaleLayout::kNone && format.act == ActFormat::kI8PerGroup;
}

int64_t line_table_at(int64_t n, int64_t k) {
  return (n + kUnitRows - 1) / kUnitRows * (k / kUnitColumns) * kLineUnitBytes;
}

int64_t line_units_bytes(const WeightFormat& format, int64_t n, int64_t k) {
  return line_table_at(n, k) + format.lines * static_cast<int64_t>(sizeof(UnitLine));
}

void pack_line_units_ref(const LinearWeight& weight, std::span<uint8_t> units) {
  const WeightFormat& format = weight.format;
  HEARTH_CHECK(has_line_units(format, weight.k) &&
                   static_cast<int64_t>(units.size()) == line_units_bytes(format, weight.n, weight.k),
               "line units of a weight of format {}: {} bytes", to_string(format), units.size());
  const int64_t unit_columns = weight.k / kUnitColumns;
  const auto* const codes = static_cast<const uint8_t*>(weight.codes.data);
  std::ranges::fill(units, uint8_t{0});
  for (int64_t row = 0; row < weight.n; ++row)
    for (int64_t unit = 0; unit < unit_columns; ++unit) {
      uint8_t* const to = units.data() + (row / kUnitRows * unit_columns + unit) * kLineUnitBytes;
      const int r = static_cast<int>(row % 8), high = static_cast<int>(row % kUnitRows / 8);
      for (int step = 0; step < 4; ++step)
        for (int q = 0; q < 4; ++q) {
          uint32_t of_word[8];
          for (int i = 0; i < 8; ++i) {
            const int64_t column = unit * kUnitColumns + unit_column(UnitOrder::kLevels, step, q, i);
            of_word[i] = codes[(row * weight.codes.row_stride + column) / 2] >> (column % 2 * 4) & 15;
          }
          const uint32_t word = pack_word(UnitOrder::kLevels, of_word);
          std::memcpy(to + ((step / 2 * 32 + 4 * r + q) * 4 + step % 2 * 2 + high) * 4, &word, sizeof(word));
        }
      const auto line = static_cast<uint16_t>(weight.line_index.row<uint16_t>(row)[unit] * sizeof(UnitLine));
      std::memcpy(to + kUnitCodeBytes + (2 * r + high) * 2, &line, sizeof(line));
    }
  uint8_t* const table = units.data() + line_table_at(weight.n, weight.k);
  for (int64_t i = 0; i < format.lines; ++i) {
    const UnitLine line = unit_line(weight.lines.row<int8_t>(i), format.bitvectors,
                                    static_cast<const f16*>(weight.line_scales.data)[i].to_float());
    std::memcpy(table + i * static_cast<int64_t>(sizeof(line)), &line, sizeof(line));
  }
}

}  // namespace hearth
