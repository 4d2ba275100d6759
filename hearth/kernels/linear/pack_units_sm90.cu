// SPDX-License-Identifier: Apache-2.0
// A block packs a unit, a word a thread; then some of the threads a row's scale and zero point.
#include "hearth/kernels/linear/pack_units_sm90.h"

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

struct PackParams {
  const uint8_t* codes;
  const void* scales;
  const uint8_t* zeros;  // or null
  uint8_t* units;
  int64_t row_bytes, scale_stride, zero_stride;
  int64_t n;
  int unit_columns, unit_bytes, scale_bytes;
  int group_units;  // units of a group
  DType scale_dtype;
  UnitOrder order;
};

__global__ void __launch_bounds__(kUnitWords) pack_units_kernel(const __grid_constant__ PackParams p) {
  const int unit = static_cast<int>(blockIdx.x % p.unit_columns), thread = static_cast<int>(threadIdx.x);
  const int64_t strip = blockIdx.x / p.unit_columns;
  uint8_t* const to = p.units + int64_t{blockIdx.x} * p.unit_bytes;
  const int word = thread % 4, lane = thread / 4 % 32, step = thread / 128 * 2 + word / 2;
  const int64_t row = strip * kUnitRows + lane / 4 + word % 2 * 8;
  uint32_t codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int column = unit * kUnitColumns + unit_column(p.order, step, lane % 4, i);
    codes[i] = row < p.n ? p.codes[row * p.row_bytes + column / 2] >> (column % 2 * 4) & 15 : 0;
  }
  reinterpret_cast<uint32_t*>(to)[thread] = pack_word(p.order, codes);
  if (thread >= kUnitRows) return;
  const int64_t scaled = strip * kUnitRows + thread / 2 + thread % 2 * 8;
  const bool is_there = scaled < p.n;
  const int64_t at = scaled * p.scale_stride + unit / p.group_units;
  uint8_t* const scales = to + kUnitCodeBytes;
  if (p.scale_dtype == DType::kF32) {
    reinterpret_cast<uint32_t*>(scales)[thread] = is_there ? stored_at(p.scales, DType::kF32, at) : 0;
  } else {
    uint32_t bits = is_there ? stored_at(p.scales, p.scale_dtype, at) : 0;
    if (p.scale_dtype == DType::kE4m3) bits = __half_as_ushort(__float2half_rn(value_of_stored(bits, DType::kE4m3)));
    reinterpret_cast<uint16_t*>(scales)[thread] = static_cast<uint16_t>(bits);
  }
  if (p.zeros != nullptr)
    scales[kUnitRows * p.scale_bytes + thread] =
        is_there ? p.zeros[scaled * p.zero_stride + unit / p.group_units] : uint8_t{0};
}

}  // namespace

Status pack_units(const LinearWeight& weight, std::byte* units, void* stream) {
  const WeightFormat& format = weight.format;
  HEARTH_CHECK(has_units(format, weight.k) && !weight.k_order, "units of a weight of format {}", to_string(format));
  const int64_t blocks = (weight.n + kUnitRows - 1) / kUnitRows * (weight.k / kUnitColumns);
  if (blocks == 0) return {};
  const PackParams params{.codes = static_cast<const uint8_t*>(weight.codes.data),
                          .scales = weight.scales.data,
                          .zeros = format.has_zero_point ? static_cast<const uint8_t*>(weight.zeros.data) : nullptr,
                          .units = reinterpret_cast<uint8_t*>(units),
                          .row_bytes = weight.codes.row_stride / 2,
                          .scale_stride = weight.scales.row_stride,
                          .zero_stride = weight.zeros.row_stride,
                          .n = weight.n,
                          .unit_columns = static_cast<int>(weight.k / kUnitColumns),
                          .unit_bytes = unit_bytes(format),
                          .scale_bytes = static_cast<int>(dtype_bytes(unit_scale_dtype(format), 1)),
                          .group_units = static_cast<int>(std::min(format.group_k, weight.k) / kUnitColumns),
                          .scale_dtype = format.scale_dtype,
                          .order = unit_order(format)};
  return launch(Launch(dim3(static_cast<unsigned>(blocks)), dim3(kUnitWords), stream), pack_units_kernel, params);
}

}  // namespace hearth::sm90
