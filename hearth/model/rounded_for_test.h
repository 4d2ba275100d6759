// SPDX-License-Identifier: Apache-2.0
// Test support: fable-13m with its layers' linears in any quantized format, rounded to nearest. Tests only; stateless.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quantized_writer.h"

namespace hearth::testing {

inline constexpr const char* kRoundedModel = "models/fable-13m";
inline constexpr int64_t kRoundedGroup = 128;

// Two's complement as bitvectors.
inline constexpr std::array<float, 4> kRoundedLine = {-8, 4, 2, 1};

// What a 4-bit code means before its scale.
inline std::array<float, 16> levels(const WeightFormat& format) {
  std::array<float, 16> values = code_values(format.code);
  if (format.code == WeightCode::kBitvectors) subset_sums(kRoundedLine, values);
  if (format.code == WeightCode::kU4)
    for (float& v : values) v -= 8;
  return values;
}

// Round to nearest, by the largest magnitude of a group (4-bit codes) or a row (E4M3).
inline QuantizedMatrix round_weights(const WeightFormat& format, std::span<const float> weights, int64_t n, int64_t k) {
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  matrix.codes.assign(static_cast<size_t>(n * matrix.row_bytes()), 0);
  const bool is_e4m3 = format.code == WeightCode::kE4m3;
  const std::array<float, 16> table = levels(format);
  const float largest_level = is_e4m3 ? 448 : *std::ranges::max_element(table);
  const int64_t group = is_e4m3 ? k : kRoundedGroup;
  for (int64_t row = 0; row < n; ++row) {
    const std::span<uint8_t> codes(matrix.codes.data() + row * matrix.row_bytes(),
                                   static_cast<size_t>(matrix.row_bytes()));
    for (int64_t begin = 0; begin < k; begin += group) {
      const std::span<const float> part =
          weights.subspan(static_cast<size_t>(row * k + begin), static_cast<size_t>(std::min(group, k - begin)));
      float largest = 1e-4f;
      for (const float w : part) largest = std::max(largest, std::abs(w));
      const float scale = f16::from_float(largest / largest_level).to_float();
      matrix.scales.push_back(scale);
      for (size_t j = 0; j < part.size(); ++j) {
        if (is_e4m3) {
          codes[j] = e4m3::from_float(part[j] / scale).bits;
          continue;
        }
        const auto off = [&](float level) { return std::abs(part[j] - scale * level); };
        const auto nearest = std::ranges::min_element(table, {}, off) - table.begin();
        put_nibble(codes, begin + static_cast<int64_t>(j), static_cast<uint8_t>(nearest));
      }
    }
  }
  if (format.code == WeightCode::kBitvectors) {
    matrix.lines.assign(kRoundedLine.begin(), kRoundedLine.end());
    matrix.line_scales = {1};
    matrix.line_index.assign(matrix.scales.size(), 0);
  }
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 0.02f;
  return matrix;
}

// fable-13m with its layers' linears in `format`.
inline void write_rounded(const std::filesystem::path& dir, const WeightFormat& format) {
  const auto checkpoint = Checkpoint::open(kRoundedModel);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  std::vector<StoredTensor> tensors;
  QuantizedModel model{.plain = {"lm_head"}};
  for (const TensorEntry& entry : checkpoint->tensors()) {
    std::vector<std::byte> bytes(static_cast<size_t>(entry.size_bytes));
    ASSERT_TRUE(checkpoint->read(entry, bytes));
    if (!entry.name.ends_with("_proj.weight")) {
      tensors.push_back({{entry.name, entry.dtype, entry.shape}, std::move(bytes)});
      continue;
    }
    const std::string module = entry.name.substr(0, entry.name.size() - std::string_view(".weight").size());
    const int64_t n = entry.shape[0], k = entry.shape[1];
    std::vector<float> weights(static_cast<size_t>(n * k));
    ASSERT_TRUE(convert_floats(entry.dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(weights))));
    model.quantized.push_back({module, format, n, k});
    auto parts = tensors_of(round_weights(format, weights, n, k), module, CheckpointForm::kHearth);
    ASSERT_TRUE(parts) << parts.error().message;
    for (StoredTensor& part : *parts) tensors.push_back(std::move(part));
  }
  auto config = quantization_config(model, CheckpointForm::kHearth);
  ASSERT_TRUE(config) << config.error().message;
  nlohmann::json whole = checkpoint->config();
  whole["quantization_config"] = *config;
  std::ofstream(dir / "config.json") << whole;
  std::vector<TensorData> list;
  for (const StoredTensor& tensor : tensors) list.push_back({tensor.spec, tensor.bytes});
  ASSERT_TRUE(write_safetensors(dir / "model.safetensors", list));
}

inline WeightFormat groups_of(WeightCode code, ActFormat act) {
  return {.code = code,
          .scale_layout = ScaleLayout::kGroup,
          .scale_dtype = DType::kF16,
          .group_k = kRoundedGroup,
          .act = act};
}
inline WeightFormat sbvr(ActFormat act) {
  WeightFormat format = groups_of(WeightCode::kBitvectors, act);
  format.bitvectors = 4, format.lines = 1, format.integer_lines = true;
  return format;
}
inline WeightFormat fp8(ActFormat act) {
  return {.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = DType::kF32, .act = act};
}

}  // namespace hearth::testing
