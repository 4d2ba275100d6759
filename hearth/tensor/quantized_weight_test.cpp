// SPDX-License-Identifier: Apache-2.0
// Tests of quantized_weight.h: every part keeps its values, type, shape and alignment, and nothing is written behind
// the promised bytes.
#include "hearth/tensor/quantized_weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hearth/base/random.h"

namespace hearth {
namespace {

QuantizedMatrix make(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order, uint64_t seed) {
  Random random(seed);
  const auto byte = [&](int64_t below) { return static_cast<uint8_t>(random.below(below)); };
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  matrix.codes.resize(static_cast<size_t>(n * matrix.row_bytes()));
  for (uint8_t& code : matrix.codes) code = byte(256);
  matrix.scales.resize(static_cast<size_t>(format.scale_count(n, k)));
  for (float& scale : matrix.scales) scale = static_cast<float>(1 + random.below(14)) * 0.125f;  // exact in every type
  if (format.has_zero_point) matrix.zeros.resize(matrix.scales.size());
  for (uint8_t& zero : matrix.zeros) zero = byte(16);
  if (format.code == WeightCode::kBitvectors) {
    matrix.lines.resize(static_cast<size_t>(format.lines * format.bitvectors));
    const int64_t largest = format.integer_lines ? 127 / format.bitvectors : 127;  // a line adds up to 127 at most
    for (float& c : matrix.lines)
      c = static_cast<float>(random.below(2 * largest + 1) - largest) * (format.integer_lines ? 1 : 0.5f);
    if (format.integer_lines) matrix.line_scales.resize(static_cast<size_t>(format.lines));
    for (float& scale : matrix.line_scales) scale = static_cast<float>(1 + random.below(100)) * 0x1p-12f;
    matrix.line_index.resize(static_cast<size_t>(n * ((k + format.group_k - 1) / format.group_k)));
    for (uint16_t& index : matrix.line_index) index = static_cast<uint16_t>(random.below(format.lines));
  }
  if (has_k_order)
    for (int64_t j = 0; j < k; ++j) matrix.k_order.push_back(static_cast<int32_t>(k - 1 - j));
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 0.375f;
  return matrix;
}

float value_at(const ConstTensorView& view, int64_t row, int64_t col) {
  const int64_t i = row * view.row_stride + col;
  switch (view.dtype) {
    case DType::kF32: return static_cast<const float*>(view.data)[i];
    case DType::kF16: return static_cast<const f16*>(view.data)[i].to_float();
    case DType::kBf16: return static_cast<const bf16*>(view.data)[i].to_float();
    case DType::kE4m3: return static_cast<const e4m3*>(view.data)[i].to_float();
    case DType::kI8: return static_cast<const int8_t*>(view.data)[i];
    case DType::kU16: return static_cast<const uint16_t*>(view.data)[i];
    case DType::kI32: return static_cast<float>(static_cast<const int32_t*>(view.data)[i]);
    default: return static_cast<const uint8_t*>(view.data)[i];
  }
}

template <class T>
void expect_values(std::string_view name, const ConstTensorView& view, DType dtype, const Shape& shape,
                   const std::vector<T>& values) {
  SCOPED_TRACE(name);
  ASSERT_EQ(static_cast<bool>(view), !values.empty());
  if (values.empty()) return;
  EXPECT_EQ(dtype_name(view.dtype), dtype_name(dtype));
  EXPECT_EQ(to_string(view.shape), to_string(shape));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u);
  ASSERT_EQ(view.shape.count(), static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(value_at(view, 0, static_cast<int64_t>(i)), static_cast<float>(values[i])) << i;
}

void check(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order, uint64_t seed) {
  SCOPED_TRACE(fmt::format("seed {} {} [{}, {}]", seed, to_string(format), n, k));
  const QuantizedMatrix matrix = make(format, n, k, has_k_order, seed);
  ASSERT_TRUE(matrix.validate());
  const int64_t bytes = quantized_weight_bytes(format, n, k, has_k_order);
  EXPECT_EQ(bytes % 64, 0);
  std::vector<std::byte> memory(static_cast<size_t>(bytes + 128), std::byte{0xA5});
  std::byte* begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  const LinearWeight weight = place_quantized(matrix, begin);
  EXPECT_TRUE(std::all_of(memory.data(), begin, [](std::byte b) { return b == std::byte{0xA5}; }));
  EXPECT_TRUE(
      std::all_of(begin + bytes, memory.data() + memory.size(), [](std::byte b) { return b == std::byte{0xA5}; }));

  EXPECT_EQ(weight.format, format);
  EXPECT_EQ(weight.n, n);
  EXPECT_EQ(weight.k, k);
  EXPECT_FALSE(weight.bias);
  EXPECT_EQ(to_string(weight.codes.shape), to_string(Shape{n, k}));
  for (int64_t row = 0; row < n; ++row)  // as a slice of rows sees them
    ASSERT_EQ(std::memcmp(weight.codes.slice_rows(row, 1).data, matrix.codes.data() + row * matrix.row_bytes(),
                          static_cast<size_t>(matrix.row_bytes())),
              0);
  const int64_t groups = format.group_k > 0 ? (k + format.group_k - 1) / format.group_k : 1;
  const Shape scale_shape = format.scale_layout == ScaleLayout::kGroup ? Shape{n, groups}
                            : format.scale_layout == ScaleLayout::kBlock
                                ? Shape{(n + format.block_n - 1) / format.block_n, groups}
                            : format.scale_layout == ScaleLayout::kRow ? Shape{n}
                                                                       : Shape{1};
  expect_values("scales", weight.scales, format.scale_dtype, scale_shape, matrix.scales);
  expect_values("zeros", weight.zeros, DType::kU8, scale_shape, matrix.zeros);
  expect_values("lines", weight.lines, format.integer_lines ? DType::kI8 : DType::kF16,
                Shape{format.lines, format.bitvectors}, matrix.lines);
  expect_values("line_scales", weight.line_scales, DType::kF16, Shape{format.lines}, matrix.line_scales);
  expect_values("line_index", weight.line_index, DType::kU16, Shape{n, groups}, matrix.line_index);
  expect_values("k_order", weight.k_order, DType::kI32, Shape{k}, matrix.k_order);
  expect_values("act_scale", weight.act_scale, DType::kF32, Shape{1},
                format.act == ActFormat::kE4m3Static ? std::vector<float>{matrix.act_scale} : std::vector<float>{});
}

TEST(QuantizedWeight, PartsKeepTheirValuesAndShapes) {
  using enum WeightCode;
  uint64_t seed = 1;
  std::vector<WeightFormat> formats = {WeightFormat::plain(DType::kF32), WeightFormat::plain(DType::kF16),
                                       WeightFormat::plain(DType::kBf16)};
  for (DType scale : {DType::kF32, DType::kF16, DType::kBf16, DType::kE4m3}) {
    formats.push_back({.code = kE4m3, .scale_layout = ScaleLayout::kTensor, .scale_dtype = scale});
    formats.push_back({.code = kE4m3, .scale_layout = ScaleLayout::kRow, .scale_dtype = scale});
    formats.push_back(
        {.code = kE4m3, .scale_layout = ScaleLayout::kBlock, .scale_dtype = scale, .group_k = 16, .block_n = 3});
    for (WeightCode code : {kU4, kI4SignMagnitude, kC4})
      formats.push_back({.code = code, .scale_layout = ScaleLayout::kGroup, .scale_dtype = scale, .group_k = 16});
    formats.push_back(formats[formats.size() - 3]);
    formats.back().has_zero_point = true;
    formats.back().act = ActFormat::kE4m3Static;
  }
  for (int s = 2; s <= 8; ++s)
    for (bool integer : {false, true})
      formats.push_back({.code = kBitvectors, .group_k = 16, .bitvectors = s, .lines = 37, .integer_lines = integer});
  for (const WeightFormat& format : formats)
    for (int64_t k : {1, 2, 15, 33})
      for (int64_t n : {1, 7}) check(format, n, k, k % 2 == 0, ++seed);
}

// The canonical bytes of a format are those that it stores, but for zeros (a byte each), line indices (two bytes), bits
// that do not fill a nibble or byte, and the alignment.
TEST(QuantizedWeight, TakesTheStoredBytesWhereNothingIsPadded) {
  const WeightFormat int4{
      .code = WeightCode::kU4, .scale_layout = ScaleLayout::kGroup, .scale_dtype = DType::kF16, .group_k = 128};
  EXPECT_EQ(quantized_weight_bytes(int4, 256, 1024, false), int4.stored_bytes(256, 1024));
  EXPECT_EQ(quantized_weight_bytes(int4, 256, 1024, true), int4.stored_bytes(256, 1024) + 4096);
}

TEST(QuantizedMatrix, AStaticScaleOfActivationsIsAPositiveNumber) {
  WeightFormat format{.code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kTensor};
  format.act = ActFormat::kE4m3Static;
  QuantizedMatrix matrix = make(format, 2, 3, false, 1);
  EXPECT_TRUE(matrix.validate());
  for (const float scale : {0.0f, -1.0f, INFINITY, NAN}) {
    matrix.act_scale = scale;
    EXPECT_FALSE(matrix.validate()) << scale;
  }
}

}  // namespace
}  // namespace hearth
