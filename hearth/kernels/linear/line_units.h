// SPDX-License-Identifier: Apache-2.0
// How weights of up to 4 bitvectors with integer lines lie on a GPU: units of 16 rows and 128 columns, one line's
// columns, in the geometry of nibble_units.h, and behind the last one a table of the lines.
//   unit   codes   as nibble_units.h has them, bits in UnitOrder::kLevels: what is a sign there is a code's bit 3 here
//          lines   [16] u16: where the row's line lies in the table, bytes; rows 0, 8, 1, 9, ... 7, 15
//   table  [lines] UnitLine
// So a code's number is sum[its bits 2..0], found by one byte permutation for four codes, and `top` where bit 3 is set,
// which is multiplied with the sum of x over these columns: the tensor cores make that of the bits alone.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

struct UnitLine {
  int8_t sum[8];  // of the coefficients that bits 2..0 of a code name
  int32_t top;    // the coefficient of bit 3: the first of 4; 0 with fewer
  float scale;    // of the line, over 128
};
static_assert(sizeof(UnitLine) == 16);

inline constexpr int kLineUnitBytes = kUnitCodeBytes + 2 * kUnitRows;
inline constexpr int64_t kMostUnitLines = 4096;  // 64 KB of shared memory

// Whether a weight of this format with k columns has such units, for activations in INT8.
bool has_line_units(const WeightFormat& format, int64_t k);
// Bytes of the units of an [n, k] weight, where its table begins; and with the table.
int64_t line_table_at(int64_t n, int64_t k);
int64_t line_units_bytes(const WeightFormat& format, int64_t n, int64_t k);

// Line of `count` coefficients. REQUIRES: no sum of some of them is beyond +-127.
HEARTH_HOST_DEVICE constexpr UnitLine unit_line(const int8_t* coefficients, int count, float scale) {
  UnitLine line{{}, count == 4 ? coefficients[0] : 0, scale / 128};
  for (int code = 0; code < (count == 2 ? 4 : 8); ++code)
    for (int bit = 0; bit < (count == 2 ? 2 : 3); ++bit)
      if ((code >> bit & 1) != 0) line.sum[code] = static_cast<int8_t>(line.sum[code] + coefficients[count - 1 - bit]);
  return line;
}

// Packs a weight in canonical form, both in host memory: what the GPU's kernel is tested against. `units` holds
// line_units_bytes().
void pack_line_units_ref(const LinearWeight& weight, std::span<uint8_t> units);

}  // namespace hearth
