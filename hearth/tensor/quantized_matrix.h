// SPDX-License-Identifier: Apache-2.0
// QuantizedMatrix: a weight [n, k] in one of the formats of weight_format.h, owned, in hearth's canonical form. Readers
// of foreign checkpoints and the quantizer make it, writers store it, the model copies it to where ops read it.
//
// The canonical form, which LinearWeight's views have too:
//   codes  kF32, kF16, kBf16, kE4m3   [n, k] row-major, little endian
//          kU4, kI4SignMagnitude, kC4 [n, ceil(k / 2)] bytes, the even column in the low nibble
//          kBitvectors                as the 4-bit codes: bit S - 1 - s of a nibble is the weight's bit of bitvector s
//                                     (S <= 4), so that the nibble indexes the 2^S subset sums of its line.
//                                     Wider codes (S of 5 to 8): [n, k] bytes
//   scales f32 values that scale_dtype holds exactly: kRow [n], kGroup [n, G], kBlock [ceil(n / block_n), G], kTensor
//   [1]
//   zeros  as scales, one byte each, 0..15
//   lines  [lines, S] coefficients: integers of which any add up to -127..127 where integer_lines, else values that f16
//          holds exactly
//   line_scales [lines] f32 values that f16 holds exactly (integer lines); line_index [n, G]
// with G = ceil(k / group_k). value(n, k) = scale * decode(code), decode being
//   kU4 q - zero (8 where has_zero_point is false); kI4SignMagnitude (-1)^bit3 * bits 2..0;
//   kC4 (-1)^bit3 * kC4Levels[bits 2..0]; kBitvectors sum of the line's coefficients whose bit is set.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

// Lloyd-Max levels for a normal distribution, moved to values that E4M3 holds exactly.
inline constexpr std::array<float, 8> kC4Levels = {9.0f / 64, 13.0f / 32, 11.0f / 16, 1.0f,
                                                   11.0f / 8, 7.0f / 4,   9.0f / 4,   3.0f};

struct QuantizedMatrix {
  WeightFormat format;
  int64_t n = 0;
  int64_t k = 0;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint8_t> zeros;
  std::vector<float> lines;
  std::vector<float> line_scales;
  std::vector<uint16_t> line_index;
  std::vector<int32_t> k_order;  // [k] as LinearWeight::k_order; empty: in order
  float act_scale = 0;           // ActFormat::kE4m3Static

  // Bytes of one row of codes.
  int64_t row_bytes() const;
  // InvalidArgument where the parts' sizes do not suit the format, or an index lies outside its table. `with_codes`
  // false: the codes lie elsewhere, and there are none here.
  Status validate(bool with_codes = true) const;
  // Row `row` as it acts on x: out[j] multiplies input column j, in the order of x. REQUIRES: out.size() == k.
  void dequantize_row(int64_t row, std::span<float> out) const;
};

// The 4-bit code of element `column` of a packed row.
inline uint8_t nibble_at(std::span<const uint8_t> row, int64_t column) {
  return static_cast<uint8_t>(row[static_cast<size_t>(column / 2)] >> (column % 2 * 4) & 15);
}
// REQUIRES: the nibble's place holds 0.
inline void put_nibble(std::span<uint8_t> row, int64_t column, uint8_t code) {
  row[static_cast<size_t>(column / 2)] |= static_cast<uint8_t>(code << (column % 2 * 4));
}

// The values of the 16 codes of a 4-bit format without line (kU4 before its zero point, kI4SignMagnitude, kC4).
std::array<float, 16> code_values(WeightCode code);
// The 2^S subset sums of a line of S <= 8 coefficients: index bit S - 1 - s takes coefficient s.
void subset_sums(std::span<const float> line, std::span<float> sums);

}  // namespace hearth
