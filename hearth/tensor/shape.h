// SPDX-License-Identifier: Apache-2.0
// Shapes of up to five dimensions and tensor views. A view owns nothing and is not kept past the call
// that receives it; which memory it points to (host, device) is known to whoever made it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "hearth/base/check.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

class Shape {
 public:
  static constexpr int kMaxRank = 5;

  constexpr Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  // REQUIRES: at most kMaxRank dimensions.
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    HEARTH_CHECK(rank_ <= kMaxRank, "rank {} is above {}", rank_, kMaxRank);
    for (int i = 0; i < rank_; ++i) dims_[i] = dims[i];
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t back() const { return rank_ ? dims_[rank_ - 1] : 1; }
  // Product of all dimensions; 1 for a scalar.
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// "[2, 384]"
std::string to_string(const Shape& shape);

// A tensor whose last dimension is dense. `row_stride` is the distance, in elements, from one row (all
// but the last dimension flattened) to the next: it is the last dimension for a dense tensor, more for a
// slice of columns.
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t row_stride = 0;

  BasicTensorView() = default;
  BasicTensorView(Void* d, DType t, Shape s) : data(d), dtype(t), shape(s), row_stride(s.back()) {}
  BasicTensorView(Void* d, DType t, Shape s, int64_t stride) : data(d), dtype(t), shape(s), row_stride(stride) {}
  // A mutable view serves where a const one is wanted.
  template <class Other>
  requires(std::is_const_v<Void> && !std::is_const_v<Other>)
      BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT: implicit by design
      : data(other.data), dtype(other.dtype), shape(other.shape), row_stride(other.row_stride) {}

  int64_t cols() const { return shape.back(); }
  int64_t rows() const { return shape.back() == 0 ? 0 : shape.count() / shape.back(); }
  bool is_dense() const { return row_stride == shape.back(); }
  int64_t size_bytes() const { return dtype_bytes(dtype, shape.count()); }
  explicit operator bool() const { return data != nullptr; }

  // The elements of row `row`. REQUIRES: T matches dtype.
  template <class T>
  auto* row(int64_t row) const {
    HEARTH_DCHECK(kDTypeOf<T> == dtype, "view of {} read as {}", dtype_name(dtype), dtype_name(kDTypeOf<T>));
    using Pointer = std::conditional_t<std::is_const_v<Void>, const T*, T*>;
    return static_cast<Pointer>(data) + row * row_stride;
  }

  // Rows [begin, begin + count) of a 2-d view.
  BasicTensorView slice_rows(int64_t begin, int64_t count) const {
    auto* bytes = static_cast<std::conditional_t<std::is_const_v<Void>, const std::byte*, std::byte*>>(data);
    return {bytes + dtype_bytes(dtype, begin * row_stride), dtype, Shape{count, cols()}, row_stride};
  }
  // Columns [begin, begin + count) of every row of a 2-d view.
  BasicTensorView slice_cols(int64_t begin, int64_t count) const {
    auto* bytes = static_cast<std::conditional_t<std::is_const_v<Void>, const std::byte*, std::byte*>>(data);
    return {bytes + dtype_bytes(dtype, begin), dtype, Shape{rows(), count}, row_stride};
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

}  // namespace hearth
