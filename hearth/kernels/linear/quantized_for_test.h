// SPDX-License-Identifier: Apache-2.0
// What the tests of quantized linears share: random weights of every format, placed as ops read them; the obvious loops
// over them, from the definitions of the formats alone; the error that an op may have. Tests only; one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/op_test.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth::testing {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Random codes; scales of both signs of exponent, so that groups matter.
inline QuantizedMatrix random_matrix(const WeightFormat& format, int64_t n, int64_t k, bool has_k_order,
                                     Random& random) {
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  const bool bitvectors = format.code == WeightCode::kBitvectors;
  const int64_t columns = k, groups = format.group_k > 0 ? ceil_div(k, format.group_k) : 1;
  matrix.codes.assign(static_cast<size_t>(n * matrix.row_bytes()), 0);
  for (int64_t row = 0; row < n; ++row) {
    const std::span<uint8_t> bytes(matrix.codes.data() + row * matrix.row_bytes(),
                                   static_cast<size_t>(matrix.row_bytes()));
    for (int64_t j = 0; j < columns; ++j) {
      const auto code = static_cast<uint8_t>(random.below(int64_t{1} << format.code_bits()));
      if (format.code == WeightCode::kE4m3) {
        bytes[static_cast<size_t>(j)] = (code & 0x7F) == 0x7F ? 0x7E : code;
      } else if (bitvectors && format.bitvectors > 4) {
        bytes[static_cast<size_t>(j)] = code;
      } else {
        put_nibble(bytes, j, code);
      }
    }
  }
  const auto in_type = [&](float value) {
    switch (format.scale_dtype) {
      case DType::kF16: return f16::from_float(value).to_float();
      case DType::kBf16: return bf16::from_float(value).to_float();
      case DType::kE4m3: return e4m3::from_float(value).to_float();
      default: return value;
    }
  };
  matrix.scales.resize(static_cast<size_t>(format.scale_count(n, k)));
  for (float& scale : matrix.scales) scale = in_type(std::exp(random.normal()) * 0.05f);
  if (format.has_zero_point) matrix.zeros.resize(matrix.scales.size());
  for (uint8_t& zero : matrix.zeros) zero = static_cast<uint8_t>(random.below(16));
  if (bitvectors) {
    const int64_t largest = 127 / format.bitvectors;
    matrix.lines.resize(static_cast<size_t>(format.lines * format.bitvectors));
    for (float& c : matrix.lines)
      c = format.integer_lines ? static_cast<float>(random.below(2 * largest + 1) - largest)
                               : f16::from_float(random.normal() * 0.1f).to_float();
    if (format.integer_lines) matrix.line_scales.resize(static_cast<size_t>(format.lines));
    for (float& scale : matrix.line_scales) scale = f16::from_float(std::exp(random.normal()) * 0.01f).to_float();
    matrix.line_index.resize(static_cast<size_t>(n * groups));
    for (uint16_t& index : matrix.line_index) index = static_cast<uint16_t>(random.below(format.lines));
  }
  if (has_k_order) {
    for (int64_t j = 0; j < k; ++j) matrix.k_order.push_back(static_cast<int32_t>(j));
    for (int64_t j = k - 1; j > 0; --j) std::swap(matrix.k_order[j], matrix.k_order[random.below(j + 1)]);
  }
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 0.013f;
  return matrix;
}

// A weight in memory of its own that ends where the promised bytes end: the address sanitizer sees reads beyond.
class PlacedWeight {
 public:
  explicit PlacedWeight(const QuantizedMatrix& matrix)
      : memory_(static_cast<size_t>(quantized_weight_bytes(matrix.format, matrix.n, matrix.k, !matrix.k_order.empty()) /
                                    64)),
        weight(place_quantized(matrix, memory_[0].bytes)) {}

  std::span<std::byte> bytes() { return {memory_[0].bytes, memory_.size() * sizeof(Line)}; }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> memory_;

 public:
  LinearWeight weight;
};

// x of one row in the order of `matrix`'s codes, rounded, and the scale of each of its columns; from the definitions of
// ActFormat, not from the kernels.
inline void rounded_x(const QuantizedMatrix& matrix, const TestTensor& x, int64_t row, std::vector<float>& x8,
                      std::vector<float>& scales) {
  const int64_t k = matrix.k;
  x8.assign(static_cast<size_t>(k), 0), scales.assign(static_cast<size_t>(k), 1);
  for (int64_t j = 0; j < k; ++j)
    x8[static_cast<size_t>(matrix.k_order.empty() ? j : matrix.k_order[static_cast<size_t>(j)])] = x.at(row, j);
  const ActFormat act = matrix.format.act;
  if (act == ActFormat::kNative) return;
  const int64_t group = act == ActFormat::kI8PerGroup && matrix.format.group_k > 0 ? matrix.format.group_k : k;
  for (int64_t begin = 0; begin < k; begin += group) {
    const int64_t end = std::min(k, begin + group);
    float largest = 0;
    for (int64_t j = begin; j < end; ++j) largest = std::max(largest, std::abs(x8[static_cast<size_t>(j)]));
    float scale = largest == 0 ? 1 : largest / (act == ActFormat::kI8PerGroup ? 127.0f : 448.0f);
    if (act == ActFormat::kE4m3Static) scale = matrix.act_scale;
    for (int64_t j = begin; j < end; ++j) {
      float& v = x8[static_cast<size_t>(j)];
      v = act == ActFormat::kI8PerGroup ? std::nearbyint(v / scale) : e4m3::from_float(v / scale).to_float();
      scales[static_cast<size_t>(j)] = scale;
    }
  }
}

// W of dequantize_row in stored order.
inline std::vector<float> stored_row(const QuantizedMatrix& matrix, int64_t row) {
  QuantizedMatrix in_order = matrix;
  in_order.k_order.clear();
  std::vector<float> values(static_cast<size_t>(matrix.k));
  in_order.dequantize_row(row, values);
  return values;
}

// The obvious loop in Sum: multiply, round, add, round.
template <class Sum>
void plain_loop(const QuantizedMatrix& matrix, const TestTensor& x, const TestTensor* bias, const TestTensor* residual,
                TestTensor& out) {
  std::vector<float> x8, scales;
  std::vector<std::vector<float>> rows;
  for (int64_t n = 0; n < matrix.n; ++n) rows.push_back(stored_row(matrix, n));
  for (int64_t row = 0; row < x.rows(); ++row) {
    rounded_x(matrix, x, row, x8, scales);
    for (int64_t n = 0; n < matrix.n; ++n) {
      Sum sum = 0;
      for (size_t k = 0; k < x8.size(); ++k) sum += Sum{x8[k]} * Sum{scales[k]} * Sum{rows[static_cast<size_t>(n)][k]};
      if (bias != nullptr) sum += bias->at(0, n);
      if (residual != nullptr) sum += residual->at(row, n);
      out.set(row, n, static_cast<float>(sum));
    }
  }
}

// The error allowed against `exact`: twice that of the naive loop. A few outputs are no measure of that, since it is
// often small by luck: 40 more rows of x count. Two roundings of
// the largest value are always allowed in f32, in bf16 one.
inline double allowed_error(const QuantizedMatrix& matrix, const TestTensor& naive, const TestTensor& exact,
                            Random& random) {
  TestTensor x(DType::kF32, 40, matrix.k), more(naive.dtype(), 40, matrix.n), more_exact(naive.dtype(), 40, matrix.n);
  x.fill(random);
  plain_loop<float>(matrix, x, nullptr, nullptr, more);
  plain_loop<double>(matrix, x, nullptr, nullptr, more_exact);
  float largest = 0;
  for (int64_t r = 0; r < exact.rows(); ++r)
    for (int64_t c = 0; c < exact.cols(); ++c) largest = std::max(largest, std::abs(exact.at(r, c)));
  const double rounding = largest * (exact.dtype() == DType::kF32 ? 0x1p-22 : 0x1p-8);
  return std::max(2 * std::max(max_error(naive, exact), max_error(more, more_exact)), rounding);
}

struct Case {
  WeightFormat format;
  int64_t m, n, k;
  bool has_k_order = false;
  DType x = DType::kF32, out = DType::kF32;
  DType bias = DType::kBool;  // kBool: none
  bool has_residual = false;
};

inline std::string describe(const Case& test, uint64_t seed) {
  return fmt::format("seed {} {} m {} n {} k {} x {} out {} bias {} residual {} order {}", seed, to_string(test.format),
                     test.m, test.n, test.k, dtype_name(test.x), dtype_name(test.out), dtype_name(test.bias),
                     test.has_residual, test.has_k_order);
}

inline WeightFormat e4m3_format(ScaleLayout layout, int64_t group = 0, int64_t block_n = 0) {
  return {.code = WeightCode::kE4m3, .scale_layout = layout, .group_k = group, .block_n = block_n};
}
inline WeightFormat int4_format(WeightCode code, int64_t group, bool zeros = false, DType scale = DType::kF16) {
  return {.code = code,
          .scale_layout = group > 0 ? ScaleLayout::kGroup : ScaleLayout::kRow,
          .scale_dtype = scale,
          .group_k = group,
          .has_zero_point = zeros};
}
inline WeightFormat line_format(int bitvectors, int64_t group, bool integer) {
  return {.code = WeightCode::kBitvectors,
          .group_k = group,
          .bitvectors = bitvectors,
          .lines = 50,
          .integer_lines = integer};
}

inline std::vector<WeightFormat> weight_formats() {
  using enum WeightCode;
  std::vector<WeightFormat> formats = {
      e4m3_format(ScaleLayout::kTensor),          e4m3_format(ScaleLayout::kRow),
      e4m3_format(ScaleLayout::kBlock, 128, 128), e4m3_format(ScaleLayout::kBlock, 16, 3),
      e4m3_format(ScaleLayout::kGroup, 32),       e4m3_format(ScaleLayout::kNone)};
  for (WeightCode code : {kU4, kI4SignMagnitude, kC4})
    for (int64_t group : {0, 128, 32}) formats.push_back(int4_format(code, group));
  for (int64_t group : {0, 8, 64, 128, 24, 96, 256, 384})
    formats.push_back(int4_format(kU4, group, true, DType::kBf16));
  formats.push_back(int4_format(kU4, 128, false, DType::kE4m3));
  formats.push_back(int4_format(kU4, 128, true, DType::kF32));
  for (int s : {2, 3, 4})
    for (bool integer : {true, false}) formats.push_back(line_format(s, 128, integer));
  formats.push_back(line_format(4, 64, true));
  formats.push_back(line_format(4, 40, true));
  formats.push_back(line_format(4, 256, true));
  formats.push_back(line_format(6, 128, true));
  formats.push_back(line_format(8, 64, false));
  return formats;
}

inline constexpr ActFormat kActs[] = {ActFormat::kNative, ActFormat::kE4m3PerToken, ActFormat::kE4m3Static,
                                      ActFormat::kI8PerGroup};

inline std::vector<WeightFormat> main_formats() {
  std::vector<WeightFormat> formats = {
      e4m3_format(ScaleLayout::kRow),    int4_format(WeightCode::kU4, 128, true),
      int4_format(WeightCode::kU4, 32),  int4_format(WeightCode::kI4SignMagnitude, 128),
      int4_format(WeightCode::kC4, 128), line_format(4, 128, true),
      line_format(3, 128, false)};
  formats[0].act = formats[3].act = formats[4].act = ActFormat::kE4m3PerToken;
  formats[5].act = ActFormat::kI8PerGroup;
  return formats;
}

// A row with NaN or an infinity gives NaN, and no other row notices; a row of zeros gives zeros.
//   run(weight, x, out): the op under test; `weight` is placed in host memory
template <class Run>
void expect_bad_and_empty_rows_stay_alone(std::initializer_list<int64_t> row_counts, const Run& run) {
  constexpr int64_t kRows = 6, kColumns = 300, kNan = 3, kZeros = 5, kInfinite = 8;
  uint64_t seed = 4000;
  for (WeightFormat format : main_formats())
    for (const ActFormat act : kActs)
      for (const int64_t m : row_counts) {
        format.act = act;
        SCOPED_TRACE(fmt::format("seed {} {} m {}", ++seed, to_string(format), m));
        Random random(seed);
        PlacedWeight placed(random_matrix(format, kRows, kColumns, false, random));
        TestTensor x(DType::kF32, m, kColumns), out(DType::kF32, m, kRows), wanted(DType::kF32, m, kRows);
        x.fill(random);
        for (int64_t i = 0; i < kColumns; ++i) x.set(kZeros, i, 0);
        TestTensor clean = x;
        x.set(kNan, 140, NAN), x.set(kInfinite, kColumns - 1, INFINITY);
        ASSERT_TRUE(run(placed, x, out));
        ASSERT_TRUE(run(placed, clean, wanted));
        for (int64_t r = 0; r < m; ++r) {
          if (r != kNan && r != kInfinite) {
            EXPECT_TRUE(out.same_row_bits(r, wanted, r)) << r;
          }
          for (int64_t c = 0; c < kRows; ++c) {
            if (r == kNan) {
              EXPECT_TRUE(std::isnan(out.at(r, c)));
            }
            if (r == kInfinite && act != ActFormat::kE4m3Static) {
              EXPECT_FALSE(std::isfinite(out.at(r, c)));
            }
            if (r == kZeros) {
              EXPECT_EQ(out.at(r, c), 0);
            }
          }
        }
      }
}

}  // namespace hearth::testing
