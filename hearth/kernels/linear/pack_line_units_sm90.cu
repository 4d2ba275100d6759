// SPDX-License-Identifier: Apache-2.0
// A block packs a unit, a word a thread; then some of the threads a row's place in the table, which another kernel makes.
#include "hearth/kernels/linear/pack_line_units_sm90.h"

#include <cuda_fp16.h>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/line_units.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kTableThreads = 128;

struct PackParams {
  const uint8_t* codes;
  const uint16_t* line_index;
  uint8_t* units;
  int64_t row_bytes, index_stride;
  int64_t n;
  int unit_columns;
};

__global__ void __launch_bounds__(kUnitWords) pack_line_units_kernel(const __grid_constant__ PackParams p) {
  const int unit = static_cast<int>(blockIdx.x % p.unit_columns), thread = static_cast<int>(threadIdx.x);
  const int64_t strip = blockIdx.x / p.unit_columns;
  uint8_t* const to = p.units + int64_t{blockIdx.x} * kLineUnitBytes;
  const int word = thread % 4, lane = thread / 4 % 32, step = thread / 128 * 2 + word / 2;
  const int64_t row = strip * kUnitRows + lane / 4 + word % 2 * 8;
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int column = unit * kUnitColumns + unit_column(UnitOrder::kLevels, step, lane % 4, i);
    codes[i] = row < p.n ? p.codes[row * p.row_bytes + column / 2] >> (column % 2 * 4) & 15 : 0;
  }
  reinterpret_cast<uint32_t*>(to)[thread] = pack_word(UnitOrder::kLevels, codes);
  if (thread >= kUnitRows) return;
  const int64_t indexed = strip * kUnitRows + thread / 2 + thread % 2 * 8;
  reinterpret_cast<uint16_t*>(to + kUnitCodeBytes)[thread] =
      static_cast<uint16_t>(indexed < p.n ? p.line_index[indexed * p.index_stride + unit] * sizeof(UnitLine) : 0);
}

__global__ void __launch_bounds__(kTableThreads)
    pack_lines_kernel(const int8_t* lines, int64_t stride, const __half* scales, int count, int bitvectors,
                      UnitLine* table) {
  const int i = static_cast<int>(blockIdx.x) * kTableThreads + static_cast<int>(threadIdx.x);
  if (i < count) table[i] = unit_line(lines + i * stride, bitvectors, __half2float(scales[i]));
}

}  // namespace

Status pack_line_units(const LinearWeight& weight, std::byte* units, void* stream) {
  HEARTH_CHECK(has_line_units(weight.format, weight.k) && !weight.k_order, "line units of a weight of format {}",
               to_string(weight.format));
  const PackParams params{.codes = static_cast<const uint8_t*>(weight.codes.data),
                          .line_index = static_cast<const uint16_t*>(weight.line_index.data),
                          .units = reinterpret_cast<uint8_t*>(units),
                          .row_bytes = weight.codes.row_stride / 2,
                          .index_stride = weight.line_index.row_stride,
                          .n = weight.n,
                          .unit_columns = static_cast<int>(weight.k / kUnitColumns)};
  const int64_t table_at = line_table_at(weight.n, weight.k);
  HEARTH_TRY(launch(Launch(dim3(static_cast<unsigned>(table_at / kLineUnitBytes)), dim3(kUnitWords), stream),
                    pack_line_units_kernel, params));
  const int lines = static_cast<int>(weight.format.lines);
  return launch(
      Launch(dim3(static_cast<unsigned>((lines + kTableThreads - 1) / kTableThreads)), dim3(kTableThreads), stream),
      pack_lines_kernel, static_cast<const int8_t*>(weight.lines.data), weight.lines.row_stride,
      static_cast<const __half*>(weight.line_scales.data), lines, weight.format.bitvectors,
      reinterpret_cast<UnitLine*>(units + table_at));
}

}  // namespace hearth::sm90
