// SPDX-License-Identifier: Apache-2.0
// Test support for ops that round their output to E4M3 (rounded_rows.h). Tests only; one thread.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/op_test.h"

namespace hearth {

// Codes in rows `padding` bytes apart, and scales, in host memory. Fresh ones are what no rounding makes.
struct RoundedForTest {
  RoundedForTest(int64_t rows_, int64_t cols_, int64_t padding = 0)
      : rows(rows_),
        cols(cols_),
        stride(cols_ + padding),
        codes(DType::kBf16, 1, (rows_ * stride + 1) / 2),
        scales(DType::kF32, 1, rows_) {}

  // Views of memory that begins where `codes` and `scales` do, here or on a device.
  RoundedRows view(void* codes_at, void* scales_at, ConstTensorView static_scale = {}) const {
    return {.codes = TensorView(codes_at, DType::kE4m3, Shape{rows, cols}, stride),
            .scales = TensorView(scales_at, DType::kF32, Shape{rows}),
            .static_scale = static_scale};
  }
  RoundedRows view(ConstTensorView static_scale = {}) const { return view(codes.data(), scales.data(), static_scale); }
  uint8_t code(int64_t row, int64_t col) const { return static_cast<uint8_t>(codes.data()[row * stride + col]); }

  // That these are the bits which the definition makes of `values`, the op's plain output, and that nothing was written
  // between the rows. `static_scale` 0: of the rows.
  void expect_rounding_of(const TestTensor& values, float static_scale = 0) const {
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<float> row(static_cast<size_t>(cols));
      for (int64_t i = 0; i < cols; ++i) row[static_cast<size_t>(i)] = values.at(r, i);
      float scale = static_scale;
      if (static_scale > 0) {
        quantize_act_static(scale, row);
      } else {
        scale = quantize_act(ActFormat::kE4m3PerToken, row);
      }
      const float found = scales.at(0, r);
      ASSERT_TRUE(found == scale || (std::isnan(found) && std::isnan(scale)))
          << "row " << r << ": scale " << found << ", wanted " << scale;
      for (int64_t i = 0; i < cols; ++i)
        ASSERT_EQ(code(r, i), e4m3::from_float(row[static_cast<size_t>(i)]).bits)
            << "row " << r << ", column " << i << ": " << values.at(r, i) << " by " << scale;
      for (int64_t i = cols; i < stride; ++i) ASSERT_EQ(code(r, i), 0xFF) << "row " << r << ": padding was written";
    }
  }

  int64_t rows, cols, stride;
  TestTensor codes, scales;
};

}  // namespace hearth
