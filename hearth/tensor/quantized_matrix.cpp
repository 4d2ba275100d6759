// SPDX-License-Identifier: Apache-2.0
// Decoding here is the definition of the formats: kernels and readers are tested against it.
#include "hearth/tensor/quantized_matrix.h"

#include <algorithm>
#include <limits>

namespace hearth {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Status wanted_size(std::string_view what, size_t found, int64_t wanted) {
  if (static_cast<int64_t>(found) == wanted) return {};
  return invalid_argument("quantized matrix: {} {}, wanted {}", found, what, wanted);
}

template <class T>
float plain_at(const uint8_t* row, int64_t column) {
  T value;
  std::copy_n(row + column * static_cast<int64_t>(sizeof(T)), sizeof(T), reinterpret_cast<uint8_t*>(&value));
  return to_float(value);
}

}  // namespace

std::array<float, 16> code_values(WeightCode code) {
  std::array<float, 16> values{};
  for (int i = 0; i < 16; ++i) {
    const float magnitude = code == WeightCode::kC4 ? kC4Levels[static_cast<size_t>(i & 7)] : static_cast<float>(i & 7);
    values[static_cast<size_t>(i)] = code == WeightCode::kU4 ? static_cast<float>(i) : i & 8 ? -magnitude : magnitude;
  }
  return values;
}

void subset_sums(std::span<const float> line, std::span<float> sums) {
  const int count = static_cast<int>(line.size());
  for (int code = 0; code < 1 << count; ++code) {
    float sum = 0;
    for (int s = 0; s < count; ++s)
      if (code >> (count - 1 - s) & 1) sum += line[static_cast<size_t>(s)];
    sums[static_cast<size_t>(code)] = sum;
  }
}

int64_t QuantizedMatrix::row_bytes() const {
  if (format.code == WeightCode::kBitvectors) return format.bitvectors <= 4 ? ceil_div(k, 2) : k;
  return ceil_div(k * format.code_bits(), 8);
}

Status QuantizedMatrix::validate(bool with_codes) const {
  HEARTH_TRY(format.validate(n, k));
  HEARTH_TRY(wanted_size("bytes of codes", codes.size(), with_codes ? n * row_bytes() : 0));
  HEARTH_TRY(wanted_size("scales", scales.size(), format.scale_count(n, k)));
  HEARTH_TRY(wanted_size("zero points", zeros.size(), format.has_zero_point ? format.scale_count(n, k) : 0));
  if (std::ranges::any_of(zeros, [](uint8_t zero) { return zero > 15; }))
    return invalid_argument("quantized matrix: a zero point above 15");
  const bool bitvectors = format.code == WeightCode::kBitvectors;
  HEARTH_TRY(wanted_size("coefficients", lines.size(), bitvectors ? format.lines * format.bitvectors : 0));
  HEARTH_TRY(wanted_size("line scales", line_scales.size(), format.integer_lines ? format.lines : 0));
  HEARTH_TRY(wanted_size("line indices", line_index.size(), bitvectors ? n * ceil_div(k, format.group_k) : 0));
  for (const uint16_t index : line_index) {
    if (index >= format.lines) return invalid_argument("quantized matrix: line {} of {}", index, format.lines);
  }
  // Kernels keep the sums of integer coefficients in 8 bits.
  for (int64_t i = 0; format.integer_lines && i < format.lines; ++i) {
    float above = 0, below = 0;
    for (int64_t s = 0; s < format.bitvectors; ++s) {
      const float c = lines[static_cast<size_t>(i * format.bitvectors + s)];
      (c > 0 ? above : below) += c;
    }
    if (above > 127 || below < -127)
      return invalid_argument("quantized matrix: the coefficients of line {} add up to {}, wanted -127 to 127", i,
                              above > 127 ? above : below);
  }
  if (format.act == ActFormat::kE4m3Static && !(act_scale > 0 && act_scale <= std::numeric_limits<float>::max()))
    return invalid_argument("quantized matrix: scale {} of activations, wanted a positive number", act_scale);
  if (k_order.empty()) return {};
  HEARTH_TRY(wanted_size("entries of the column order", k_order.size(), k));
  std::vector<bool> seen(static_cast<size_t>(k));
  for (const int32_t place : k_order) {
    if (place < 0 || place >= k || seen[static_cast<size_t>(place)])
      return invalid_argument("quantized matrix: the column order is no permutation of {} columns", k);
    seen[static_cast<size_t>(place)] = true;
  }
  return {};
}

void QuantizedMatrix::dequantize_row(int64_t row, std::span<float> out) const {
  const std::span<const uint8_t> stored(codes.data() + row * row_bytes(), static_cast<size_t>(row_bytes()));
  const int64_t group = format.group_k > 0 ? format.group_k : k, groups = ceil_div(k, group);
  const bool bitvectors = format.code == WeightCode::kBitvectors;
  std::array<float, 256> table{};
  if (format.code_bits() == 4 && !bitvectors) std::ranges::copy(code_values(format.code), table.begin());

  const auto scale_index = [&](int64_t g) {
    switch (format.scale_layout) {
      case ScaleLayout::kRow: return row;
      case ScaleLayout::kGroup: return row * groups + g;
      case ScaleLayout::kBlock: return row / format.block_n * groups + g;
      default: return int64_t{0};
    }
  };
  for (int64_t g = 0; g < groups; ++g) {
    float scale = scales.empty() ? 1.0f : scales[static_cast<size_t>(scale_index(g))];
    float zero = format.code == WeightCode::kU4 ? 8.0f : 0.0f;
    if (format.has_zero_point) zero = zeros[static_cast<size_t>(scale_index(g))];
    if (bitvectors) {
      const auto line = static_cast<size_t>(line_index[static_cast<size_t>(row * groups + g)]);
      subset_sums(std::span(lines).subspan(line * static_cast<size_t>(format.bitvectors),
                                           static_cast<size_t>(format.bitvectors)),
                  table);
      if (format.integer_lines) scale *= line_scales[line];
    }
    for (int64_t j = g * group; j < std::min(k, (g + 1) * group); ++j) {
      float value = 0;
      switch (format.code) {
        case WeightCode::kF32: value = plain_at<float>(stored.data(), j); break;
        case WeightCode::kF16: value = plain_at<f16>(stored.data(), j); break;
        case WeightCode::kBf16: value = plain_at<bf16>(stored.data(), j); break;
        case WeightCode::kE4m3: value = plain_at<e4m3>(stored.data(), j); break;
        default:
          value =
              table[bitvectors && format.bitvectors > 4 ? stored[static_cast<size_t>(j)] : nibble_at(stored, j)] - zero;
      }
      out[static_cast<size_t>(j)] = scale * value;
    }
  }
  if (k_order.empty()) return;
  const std::vector<float> in_stored_order(out.begin(), out.end());
  for (int64_t j = 0; j < k; ++j)
    out[static_cast<size_t>(j)] = in_stored_order[static_cast<size_t>(k_order[static_cast<size_t>(j)])];
}

}  // namespace hearth
