// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/nibble_units.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "hearth/base/check.h"

namespace hearth {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool has_units(const WeightFormat& format, int64_t k) {
  const bool rounds = format.act == ActFormat::kE4m3PerToken || format.act == ActFormat::kE4m3Static;
  if (format.scale_layout != ScaleLayout::kGroup || format.group_k < kUnitColumns || k <= 0 || k % kUnitColumns != 0 ||
      !std::has_single_bit(static_cast<uint64_t>(format.group_k)))
    return false;
  switch (format.code) {
    case WeightCode::kI4SignMagnitude:
    case WeightCode::kC4: return rounds;
    case WeightCode::kU4: return rounds || format.act == ActFormat::kNative;
    default: return false;
  }
}

UnitOrder unit_order(const WeightFormat& format) {
  switch (format.code) {
    case WeightCode::kI4SignMagnitude: return UnitOrder::kSigns;
    case WeightCode::kC4: return UnitOrder::kLevels;
    default: return format.act == ActFormat::kNative ? UnitOrder::kOffsetsBf16 : UnitOrder::kOffsets;
  }
}

DType unit_scale_dtype(const WeightFormat& format) {
  return format.scale_dtype == DType::kE4m3 ? DType::kF16 : format.scale_dtype;
}

int unit_bytes(const WeightFormat& format) {
  return kUnitCodeBytes + kUnitRows * static_cast<int>(dtype_bytes(unit_scale_dtype(format), 1)) +
         (format.has_zero_point ? kUnitRows : 0);
}

int64_t units_bytes(const WeightFormat& format, int64_t n, int64_t k) {
  return ceil_div(n, kUnitRows) * (k / kUnitColumns) * unit_bytes(format);
}

void pack_units_ref(const LinearWeight& weight, std::span<uint8_t> units) {
  const WeightFormat& format = weight.format;
  HEARTH_CHECK(
      has_units(format, weight.k) && static_cast<int64_t>(units.size()) == units_bytes(format, weight.n, weight.k),
      "units of a weight of format {}: {} bytes", to_string(format), units.size());
  const UnitOrder order = unit_order(format);
  const int64_t bytes = unit_bytes(format), unit_columns = weight.k / kUnitColumns;
  const int64_t scale_bytes = dtype_bytes(unit_scale_dtype(format), 1);
  const auto* const codes = static_cast<const uint8_t*>(weight.codes.data);
  std::ranges::fill(units, uint8_t{0});
  for (int64_t row = 0; row < weight.n; ++row)
    for (int64_t unit = 0; unit < unit_columns; ++unit) {
      uint8_t* const to = units.data() + (row / kUnitRows * unit_columns + unit) * bytes;
      const int r = static_cast<int>(row % 8), high = static_cast<int>(row % kUnitRows / 8);
      for (int step = 0; step < 4; ++step)
        for (int q = 0; q < 4; ++q) {
          uint32_t of_word[8];
          for (int i = 0; i < 8; ++i) {
            const int64_t column = unit * kUnitColumns + unit_column(order, step, q, i);
            of_word[i] = codes[(row * weight.codes.row_stride + column) / 2] >> (column % 2 * 4) & 15;
          }
          const uint32_t word = pack_word(order, of_word);
          const int at = ((step / 2 * 32 + 4 * r + q) * 4 + step % 2 * 2 + high) * 4;
          std::memcpy(to + at, &word, sizeof(word));
        }
      const int64_t group = unit * kUnitColumns / format.group_k, place = 2 * r + high;
      uint8_t* const scale = to + kUnitCodeBytes + place * scale_bytes;
      const int64_t from = row * weight.scales.row_stride + group;
      if (format.scale_dtype == DType::kE4m3) {
        const f16 value = f16::from_float(static_cast<const e4m3*>(weight.scales.data)[from].to_float());
        std::memcpy(scale, &value, sizeof(value));
      } else {
        std::memcpy(scale, static_cast<const uint8_t*>(weight.scales.data) + from * scale_bytes,
                    static_cast<size_t>(scale_bytes));
      }
      if (format.has_zero_point)
        to[kUnitCodeBytes + kUnitRows * scale_bytes + place] =
            static_cast<const uint8_t*>(weight.zeros.data)[row * weight.zeros.row_stride + group];
    }
}

}  // namespace hearth
