// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/linear_bench_formats.h"

#include <algorithm>
#include <cstring>

#include "hearth/base/random.h"

namespace hearth {

std::vector<BenchFormat> bench_formats(const std::string& only) {
  using enum WeightCode;
  const auto int4 = [](WeightCode code, int64_t group, bool zeros, ActFormat act) {
    return WeightFormat{.code = code,
                        .scale_layout = group > 0 ? ScaleLayout::kGroup : ScaleLayout::kRow,
                        .scale_dtype = DType::kF16,
                        .group_k = group,
                        .has_zero_point = zeros,
                        .act = act};
  };
  const auto sbvr = [](int bitvectors, int64_t lines, bool integer, ActFormat act) {
    return WeightFormat{.code = kBitvectors,
                        .group_k = 128,
                        .bitvectors = bitvectors,
                        .lines = lines,
                        .integer_lines = integer,
                        .act = act};
  };
  const ActFormat native = ActFormat::kNative, e4m3 = ActFormat::kE4m3PerToken, i8 = ActFormat::kI8PerGroup;
  std::vector<BenchFormat> all = {
      {"fp8", {.code = kE4m3, .scale_layout = ScaleLayout::kRow, .act = e4m3}},
      {"fp8-block", {.code = kE4m3, .scale_layout = ScaleLayout::kBlock, .group_k = 128, .block_n = 128, .act = e4m3}},
      {"int4", int4(kU4, 128, false, native)},
      {"int4-zero", int4(kU4, 128, true, native)},
      {"int4-row", int4(kU4, 0, false, native)},
      {"int4-g64", int4(kU4, 64, false, native)},
      {"int4-g32", int4(kU4, 32, false, native)},
      {"fireq", int4(kI4SignMagnitude, 128, false, e4m3)},
      {"fireq-c4", int4(kC4, 128, false, e4m3)},
      {"sbvr", sbvr(4, 4096, true, i8)},
      {"sbvr-3", sbvr(3, 4096, true, i8)},
      {"sbvr-native", sbvr(4, 4096, true, native)},
      {"sbvr-f16-lines", sbvr(4, 65536, false, i8)},
  };
  std::erase_if(all, [&](const BenchFormat& one) { return !one.name.starts_with(only); });
  return all;
}

void repeat_first_piece(std::span<uint8_t> bytes) {
  const size_t piece = std::min<size_t>(bytes.size(), 1 << 20);
  for (size_t at = piece; at < bytes.size(); at += piece)
    std::memcpy(bytes.data() + at, bytes.data(), std::min(piece, bytes.size() - at));
}

QuantizedMatrix bench_matrix(const WeightFormat& format, int64_t n, int64_t k) {
  Random random(7);
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  matrix.codes.resize(static_cast<size_t>(n * matrix.row_bytes()));
  const bool is_e4m3 = format.code == WeightCode::kE4m3;
  for (size_t i = 0; i < std::min<size_t>(matrix.codes.size(), 1 << 20); ++i)
    matrix.codes[i] = is_e4m3 ? e4m3::from_float(random.normal() * 90).bits : static_cast<uint8_t>(random.next_u32());
  repeat_first_piece(matrix.codes);
  matrix.scales.resize(static_cast<size_t>(format.scale_count(n, k)));
  for (float& scale : matrix.scales) scale = f16::from_float(random.uniform(0.001f, 0.002f)).to_float();
  if (format.has_zero_point) matrix.zeros.assign(matrix.scales.size(), 7);
  if (format.code != WeightCode::kBitvectors) return matrix;
  if (format.bitvectors < 4)
    for (uint8_t& code : matrix.codes) code &= static_cast<uint8_t>(0x11 * ((1 << format.bitvectors) - 1));
  matrix.lines.resize(static_cast<size_t>(format.lines * format.bitvectors));
  for (float& c : matrix.lines) c = static_cast<float>(random.below(63) - 31) * (format.integer_lines ? 1 : 0x1p-10f);
  if (format.integer_lines) matrix.line_scales.assign(static_cast<size_t>(format.lines), 0x1p-10f);
  matrix.line_index.resize(static_cast<size_t>(n * ((k + format.group_k - 1) / format.group_k)));
  for (uint16_t& index : matrix.line_index) index = static_cast<uint16_t>(random.below(format.lines));
  return matrix;
}

}  // namespace hearth
