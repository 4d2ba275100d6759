// SPDX-License-Identifier: Apache-2.0
// What the reader and the writer of hearth's own form share (docs/formats/hearth-quantized.md): names of tensors, and a
// WeightFormat as JSON. Stateless.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/config_object.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {

inline constexpr int64_t kHearthFormVersion = 1;

namespace hearth_form {
inline constexpr std::string_view kWeight = "weight";              // E4M3 codes [N, K]
inline constexpr std::string_view kCodes = "weight_codes";         // 4-bit codes, u8 [N, ceil(K / 2)]
inline constexpr std::string_view kScale = "weight_scale";         // by scale layout
inline constexpr std::string_view kZero = "weight_zero";           // u8 [ceil(scales / 2)], two per byte
inline constexpr std::string_view kBits = "sbvr_bits";             // u32 [ceil(K / 32), N, S]
inline constexpr std::string_view kIndex = "sbvr_index";           // u8 or u16 [G, N]
inline constexpr std::string_view kLines = "sbvr_lines";           // i8 or f16 [lines, S]
inline constexpr std::string_view kLineScale = "sbvr_line_scale";  // f16 [lines]
inline constexpr std::string_view kOrder = "k_order";              // i32 [K]
inline constexpr std::string_view kInputScale = "input_scale";     // f32 [1]
}  // namespace hearth_form

// The format without the number of lines, which each matrix's table gives.
nlohmann::ordered_json format_to_json(const WeightFormat& format);
// Unsupported for a name or a member that this version does not know, Corrupt for members that contradict each other.
Result<WeightFormat> format_from_json(const ConfigObject& object);

// The shape of the scales of an [n, k] matrix. REQUIRES: it has scales.
Shape hearth_scale_shape(const WeightFormat& format, int64_t n, int64_t k);

// Between canonical codes of S bitvectors and the words of sbvr_bits. Bits beyond k are 0 in both.
std::vector<uint32_t> words_from_codes(const QuantizedMatrix& matrix);
std::vector<uint8_t> codes_from_words(std::span<const uint32_t> words, int64_t n, int64_t k, int bitvectors);

}  // namespace hearth
