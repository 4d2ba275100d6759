// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/hearth_form.h"

#include <algorithm>
#include <array>

#include "hearth/checkpoint/module_tensors.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

template <class T>
struct Named {
  std::string_view name;
  T value;
};
// clang 14 makes no guide for an aggregate by itself.
template <class T>
Named(const char*, T) -> Named<T>;

constexpr std::array kCodeNames = {Named{"e4m3", WeightCode::kE4m3}, Named{"u4", WeightCode::kU4},
                                   Named{"i4-sign-magnitude", WeightCode::kI4SignMagnitude},
                                   Named{"c4", WeightCode::kC4}, Named{"bitvectors", WeightCode::kBitvectors}};
constexpr std::array kScaleNames = {Named{"none", ScaleLayout::kNone}, Named{"tensor", ScaleLayout::kTensor},
                                    Named{"row", ScaleLayout::kRow}, Named{"group", ScaleLayout::kGroup},
                                    Named{"block", ScaleLayout::kBlock}};
constexpr std::array kActNames = {
    Named{"native", ActFormat::kNative}, Named{"e4m3-per-token", ActFormat::kE4m3PerToken},
    Named{"e4m3-static", ActFormat::kE4m3Static}, Named{"i8-per-group", ActFormat::kI8PerGroup}};
constexpr std::array kScaleTypes = {Named{"f32", DType::kF32}, Named{"f16", DType::kF16}, Named{"bf16", DType::kBf16},
                                    Named{"e4m3", DType::kE4m3}};

template <class T, size_t kCount>
std::string_view name_in(const std::array<Named<T>, kCount>& table, T value) {
  const auto it = std::ranges::find(table, value, &Named<T>::value);
  HEARTH_CHECK(it != table.end(), "a value without a name");
  return it->name;
}

template <class T, size_t kCount>
Result<T> value_in(const std::array<Named<T>, kCount>& table, const ConfigObject& object, std::string_view key,
                   std::optional<std::string> absent = std::nullopt) {
  HEARTH_TRY_ASSIGN(const std::string name, object.string(key, std::move(absent)));
  const auto it = std::ranges::find(table, std::string_view(name), &Named<T>::name);
  if (it != table.end()) return it->value;
  std::string wanted;
  for (const auto& entry : table) wanted += fmt::format("{}{}", wanted.empty() ? "" : ", ", entry.name);
  return unsupported("{}.{} is {}; wanted one of {}", object.path(), key, quote_name(name), wanted);
}

// Eight bits to the low bits of eight nibbles.
constexpr std::array<uint32_t, 256> kSpread = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (uint32_t bit = 0; bit < 8; ++bit) table[byte] |= (byte >> bit & 1) << 4 * bit;
  }
  return table;
}();

// Columns 32 * block .. of one row, from its S words, as S <= 4 bits in nibbles.
void write_nibbles(std::span<const uint32_t> words, std::span<uint8_t> row, int64_t block) {
  for (size_t part = 0; part < 4; ++part) {
    uint32_t nibbles = 0;
    for (const uint32_t word : words) nibbles = nibbles << 1 | kSpread[word >> 8 * part & 0xFF];
    for (size_t byte = 0; byte < 4; ++byte) {
      const size_t at = static_cast<size_t>(block) * 16 + part * 4 + byte;
      if (at < row.size()) row[at] = static_cast<uint8_t>(nibbles >> 8 * byte);
    }
  }
}

}  // namespace

nlohmann::ordered_json format_to_json(const WeightFormat& format) {
  nlohmann::ordered_json json;
  json["code"] = name_in(kCodeNames, format.code);
  json["scales"] = name_in(kScaleNames, format.scale_layout);
  if (format.scale_layout != ScaleLayout::kNone) json["scale_dtype"] = name_in(kScaleTypes, format.scale_dtype);
  if (format.group_k > 0) json["group"] = format.group_k;
  if (format.block_n > 0) json["block_rows"] = format.block_n;
  if (format.has_zero_point) json["zero_points"] = true;
  if (format.code == WeightCode::kBitvectors) {
    json["bitvectors"] = format.bitvectors;
    json["integer_lines"] = format.integer_lines;
  }
  json["activations"] = name_in(kActNames, format.act);
  return json;
}

Result<WeightFormat> format_from_json(const ConfigObject& object) {
  HEARTH_TRY(object.only({"code", "scales", "scale_dtype", "group", "block_rows", "zero_points", "bitvectors",
                          "integer_lines", "activations"}));
  WeightFormat format;
  HEARTH_TRY_ASSIGN(format.code, value_in(kCodeNames, object, "code"));
  HEARTH_TRY_ASSIGN(format.scale_layout, value_in(kScaleNames, object, "scales", "none"));
  HEARTH_TRY_ASSIGN(format.scale_dtype, value_in(kScaleTypes, object, "scale_dtype", "f32"));
  HEARTH_TRY_ASSIGN(format.act, value_in(kActNames, object, "activations", "native"));
  HEARTH_TRY_ASSIGN(format.group_k, object.integer("group", 0));
  HEARTH_TRY_ASSIGN(format.block_n, object.integer("block_rows", 0));
  HEARTH_TRY_ASSIGN(format.has_zero_point, object.boolean("zero_points", false));
  HEARTH_TRY_ASSIGN(const int64_t bitvectors, object.integer("bitvectors", 0));
  HEARTH_TRY_ASSIGN(format.integer_lines, object.boolean("integer_lines", false));
  constexpr int64_t kMost = 1 << 30;
  for (const auto& [name, value] :
       {std::pair{"group", format.group_k}, {"block_rows", format.block_n}, {"bitvectors", bitvectors}}) {
    if (value < 0 || value > kMost) return corrupt("{}.{} is {}; wanted 0 to {}", object.path(), name, value, kMost);
  }
  format.bitvectors = static_cast<int>(bitvectors);
  format.lines = format.code == WeightCode::kBitvectors ? 1 : 0;
  if (Status status = format.validate(1, 1); !status) return corrupt("{}: {}", object.path(), status.error().message);
  return format;
}

Shape hearth_scale_shape(const WeightFormat& format, int64_t n, int64_t k) {
  switch (format.scale_layout) {
    case ScaleLayout::kTensor: return {1};
    case ScaleLayout::kRow: return {n};
    case ScaleLayout::kGroup: return {n, ceil_div(k, format.group_k)};
    case ScaleLayout::kBlock: return {ceil_div(n, format.block_n), ceil_div(k, format.group_k)};
    case ScaleLayout::kNone: break;
  }
  HEARTH_CHECK(false, "a format without scales");
}

std::vector<uint32_t> words_from_codes(const QuantizedMatrix& matrix) {
  const auto sums = static_cast<int64_t>(matrix.format.bitvectors);
  const int64_t blocks = ceil_div(matrix.k, 32), row_bytes = matrix.row_bytes();
  std::vector<uint32_t> words(static_cast<size_t>(blocks * matrix.n * sums));
  for (int64_t row = 0; row < matrix.n; ++row) {
    const std::span<const uint8_t> codes(matrix.codes.data() + row * row_bytes, static_cast<size_t>(row_bytes));
    for (int64_t j = 0; j < matrix.k; ++j) {
      const uint32_t code = sums <= 4 ? nibble_at(codes, j) : codes[static_cast<size_t>(j)];
      uint32_t* const out = words.data() + (j / 32 * matrix.n + row) * sums;
      for (int64_t s = 0; s < sums; ++s) out[s] |= (code >> (sums - 1 - s) & 1) << j % 32;
    }
  }
  return words;
}

std::vector<uint8_t> codes_from_words(std::span<const uint32_t> words, int64_t n, int64_t k, int bitvectors) {
  const auto sums = static_cast<size_t>(bitvectors);
  const bool wide = bitvectors > 4;
  const int64_t row_bytes = wide ? k : ceil_div(k, 2);
  std::vector<uint8_t> codes(static_cast<size_t>(n * row_bytes));
  for (int64_t block = 0; block < ceil_div(k, 32); ++block) {
    for (int64_t row = 0; row < n; ++row) {
      const auto of_row = words.subspan(static_cast<size_t>(block * n + row) * sums, sums);
      const std::span<uint8_t> out(codes.data() + row * row_bytes, static_cast<size_t>(row_bytes));
      if (!wide) {
        write_nibbles(of_row, out, block);
        continue;
      }
      for (int64_t j = block * 32; j < std::min(k, block * 32 + 32); ++j) {
        uint32_t code = 0;
        for (const uint32_t word : of_row) code = code << 1 | (word >> j % 32 & 1);
        out[static_cast<size_t>(j)] = static_cast<uint8_t>(code);
      }
    }
  }
  if (!wide && k % 2 != 0) {
    for (int64_t row = 0; row < n; ++row) codes[static_cast<size_t>(row * row_bytes + row_bytes - 1)] &= 15;
  }
  return codes;
}

}  // namespace hearth
