// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/quantized_reader.h"

namespace hearth {
namespace {

float float_at(const ConstTensorView& view, int64_t index) {
  switch (view.dtype) {
    case DType::kF16: return static_cast<const f16*>(view.data)[index].to_float();
    case DType::kBf16: return static_cast<const bf16*>(view.data)[index].to_float();
    case DType::kE4m3: return static_cast<const e4m3*>(view.data)[index].to_float();
    case DType::kI8: return static_cast<const int8_t*>(view.data)[index];
    default: return static_cast<const float*>(view.data)[index];
  }
}

}  // namespace

QuantizedReader::QuantizedReader(const LinearWeight& weight)
    : weight_(weight), group_(weight.format.group_k > 0 ? weight.format.group_k : weight.k) {
  groups_ = (weight.k + group_ - 1) / group_;
  if (weight.format.code != WeightCode::kBitvectors && weight.format.code != WeightCode::kE4m3)
    values_ = code_values(weight.format.code);
}

int64_t QuantizedReader::scale_row(int64_t row) const {
  return weight_.format.scale_layout == ScaleLayout::kBlock ? row / weight_.format.block_n : row;
}

int64_t QuantizedReader::line(int64_t row, int64_t group) const {
  return static_cast<const uint16_t*>(weight_.line_index.data)[row * weight_.line_index.row_stride + group];
}

float QuantizedReader::scale(int64_t row, int64_t group) const {
  float scale = 1;
  switch (weight_.format.scale_layout) {
    case ScaleLayout::kNone: break;
    case ScaleLayout::kTensor: scale = float_at(weight_.scales, 0); break;
    case ScaleLayout::kRow: scale = float_at(weight_.scales, row); break;
    case ScaleLayout::kGroup:
    case ScaleLayout::kBlock:
      scale = float_at(weight_.scales, scale_row(row) * weight_.scales.row_stride + group);
      break;
  }
  if (weight_.format.integer_lines) scale *= float_at(weight_.line_scales, line(row, group));
  return scale;
}

float QuantizedReader::zero(int64_t row, int64_t group) const {
  if (weight_.format.code != WeightCode::kU4) return 0;
  if (!weight_.format.has_zero_point) return 8;
  const auto* zeros = static_cast<const uint8_t*>(weight_.zeros.data);
  switch (weight_.format.scale_layout) {
    case ScaleLayout::kTensor: return zeros[0];
    case ScaleLayout::kRow: return zeros[row];
    default: return zeros[scale_row(row) * weight_.zeros.row_stride + group];
  }
}

float QuantizedReader::value(int64_t row, int64_t k) const {
  const auto* codes = static_cast<const uint8_t*>(weight_.codes.data);
  const int64_t at = row * weight_.codes.row_stride + k;
  if (weight_.format.code == WeightCode::kE4m3) return e4m3{codes[at]}.to_float();
  const unsigned code =
      weight_.codes.dtype == DType::kU4 ? codes[at / 2] >> (at % 2 * 4) & 15u : static_cast<unsigned>(codes[at]);
  if (weight_.format.code != WeightCode::kBitvectors) return values_[code] - zero(row, k / group_);
  const int64_t first = line(row, k / group_) * weight_.lines.row_stride;
  const int count = weight_.format.bitvectors;
  float sum = 0;
  for (int s = 0; s < count; ++s)
    if (code >> (count - 1 - s) & 1) sum += float_at(weight_.lines, first + s);
  return sum;
}

}  // namespace hearth
