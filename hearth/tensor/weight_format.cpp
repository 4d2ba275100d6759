// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/weight_format.h"

namespace hearth {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string_view code_name(WeightCode code) {
  switch (code) {
    case WeightCode::kF32: return "f32";
    case WeightCode::kF16: return "f16";
    case WeightCode::kBf16: return "bf16";
    case WeightCode::kE4m3: return "e4m3";
    case WeightCode::kU4: return "u4";
    case WeightCode::kI4SignMagnitude: return "i4-sign-magnitude";
    case WeightCode::kC4: return "c4";
    case WeightCode::kBitvectors: return "bitvectors";
  }
  return "?";
}

std::string_view scale_name(ScaleLayout layout) {
  switch (layout) {
    case ScaleLayout::kNone: return "no";
    case ScaleLayout::kTensor: return "tensor";
    case ScaleLayout::kRow: return "row";
    case ScaleLayout::kGroup: return "group";
    case ScaleLayout::kBlock: return "block";
  }
  return "?";
}

std::string_view act_name(ActFormat act) {
  switch (act) {
    case ActFormat::kNative: return "native";
    case ActFormat::kE4m3PerToken: return "e4m3-per-token";
    case ActFormat::kE4m3Static: return "e4m3-static";
    case ActFormat::kI8PerGroup: return "i8-per-group";
  }
  return "?";
}

}  // namespace

WeightFormat WeightFormat::plain(DType dtype) {
  WeightFormat format;
  switch (dtype) {
    case DType::kF32: format.code = WeightCode::kF32; break;
    case DType::kF16: format.code = WeightCode::kF16; break;
    case DType::kBf16: format.code = WeightCode::kBf16; break;
    default: HEARTH_CHECK(false, "{} is no plain weight type", dtype_name(dtype));
  }
  return format;
}

bool WeightFormat::is_plain() const {
  return scale_layout == ScaleLayout::kNone && act == ActFormat::kNative &&
         (code == WeightCode::kF32 || code == WeightCode::kF16 || code == WeightCode::kBf16);
}

int64_t WeightFormat::code_bits() const {
  switch (code) {
    case WeightCode::kF32: return 32;
    case WeightCode::kF16:
    case WeightCode::kBf16: return 16;
    case WeightCode::kE4m3: return 8;
    case WeightCode::kU4:
    case WeightCode::kI4SignMagnitude:
    case WeightCode::kC4: return 4;
    case WeightCode::kBitvectors: return bitvectors;
  }
  return 0;
}

int64_t WeightFormat::scale_count(int64_t n, int64_t k) const {
  switch (scale_layout) {
    case ScaleLayout::kNone: return 0;
    case ScaleLayout::kTensor: return 1;
    case ScaleLayout::kRow: return n;
    case ScaleLayout::kGroup: return n * ceil_div(k, group_k);
    case ScaleLayout::kBlock: return ceil_div(n, block_n) * ceil_div(k, group_k);
  }
  return 0;
}

int64_t WeightFormat::stored_bytes(int64_t n, int64_t k) const {
  const int64_t scales = scale_count(n, k);
  int64_t bytes = ceil_div(n * k * code_bits(), 8) + dtype_bytes(scale_dtype, scales);
  if (has_zero_point) bytes += ceil_div(scales, 2);
  if (code == WeightCode::kBitvectors) {
    bytes += n * ceil_div(k, group_k) * (lines <= 256 ? 1 : 2);
    bytes += lines * (integer_lines ? bitvectors + 2 : 2 * bitvectors);
  }
  return bytes;
}

double WeightFormat::bits_per_weight(int64_t n, int64_t k) const {
  return 8.0 * static_cast<double>(stored_bytes(n, k)) / (static_cast<double>(n) * static_cast<double>(k));
}

Status WeightFormat::validate(int64_t n, int64_t k) const {
  if (n <= 0 || k <= 0) return invalid_argument("weight [{}, {}]: both dimensions must be positive", n, k);
  const bool grouped =
      scale_layout == ScaleLayout::kGroup || scale_layout == ScaleLayout::kBlock || code == WeightCode::kBitvectors;
  if (grouped && group_k <= 0)
    return invalid_argument("weight format {}: group of {}, wanted at least 1", code_name(code), group_k);
  if (scale_layout == ScaleLayout::kBlock && block_n <= 0)
    return invalid_argument("weight format {}: block of {} rows, wanted at least 1", code_name(code), block_n);
  if (scale_layout != ScaleLayout::kNone && scale_dtype != DType::kF32 && scale_dtype != DType::kF16 &&
      scale_dtype != DType::kBf16 && scale_dtype != DType::kE4m3)
    return invalid_argument("weight format {}: scales of type {}, wanted f32, f16, bf16 or e4m3", code_name(code),
                            dtype_name(scale_dtype));
  if (has_zero_point && code != WeightCode::kU4)
    return invalid_argument("weight format {}: only u4 has zero points", code_name(code));
  const bool is_4bit = code == WeightCode::kU4 || code == WeightCode::kI4SignMagnitude || code == WeightCode::kC4;
  if (is_4bit && scale_layout == ScaleLayout::kNone)
    return invalid_argument("weight format {} needs scales", code_name(code));
  if (code == WeightCode::kBitvectors) {
    if (bitvectors < 2 || bitvectors > 8) return invalid_argument("{} bitvectors, wanted 2 to 8", bitvectors);
    if (lines < 1 || lines > 65536) return invalid_argument("{} coefficient lines, wanted 1 to 65536", lines);
  } else if (bitvectors != 0 || lines != 0 || integer_lines) {
    return invalid_argument("weight format {}: only bitvectors have coefficient lines", code_name(code));
  }
  return {};
}

std::string to_string(const WeightFormat& format) {
  std::string text(code_name(format.code));
  if (format.code == WeightCode::kBitvectors)
    text += fmt::format(" {}x{} lines{}", format.bitvectors, format.lines, format.integer_lines ? " i8" : "");
  if (format.scale_layout != ScaleLayout::kNone) {
    text += fmt::format(" {}-scale {}", scale_name(format.scale_layout), dtype_name(format.scale_dtype));
    if (format.group_k > 0) text += fmt::format(" g{}", format.group_k);
  }
  if (format.has_zero_point) text += " zero-point";
  if (format.act != ActFormat::kNative) text += fmt::format(" act {}", act_name(format.act));
  return text;
}

}  // namespace hearth
