// SPDX-License-Identifier: Apache-2.0
// Element access to a quantized LinearWeight, as QuantizedMatrix::dequantize_row defines it: weight(n, k) =
// scale(n, k / group) * value(n, k), k in stored order. What the reference uses, and the CPU kernel for formats without
// a path of their own. Reads only; any thread.
#pragma once

#include <array>
#include <cstdint>

#include "hearth/tensor/quantized_matrix.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

class QuantizedReader {
 public:
  // REQUIRES: a weight that validate() of linear.h accepts; it outlives the reader.
  explicit QuantizedReader(const LinearWeight& weight);

  int64_t group_size() const { return group_; }
  int64_t groups() const { return groups_; }
  // The scale of a group of a row, a line's own included.
  float scale(int64_t row, int64_t group) const;
  // The zero point of a group of a row: 0 for codes without one.
  float zero(int64_t row, int64_t group) const;
  // The decoded element before its scale.
  float value(int64_t row, int64_t k) const;

 private:
  int64_t scale_row(int64_t row) const;
  int64_t line(int64_t row, int64_t group) const;

  const LinearWeight& weight_;
  int64_t group_, groups_;
  std::array<float, 16> values_{};
};

}  // namespace hearth
