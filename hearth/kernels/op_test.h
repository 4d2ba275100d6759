// SPDX-License-Identifier: Apache-2.0
// What the op tests share: tensors in guarded memory, random contents with a printed seed, and the
// comparison with the reference. Used by tests only, from one thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// A dense or padded matrix in memory of its own, between two guard zones whose damage fails the test.
// Fresh elements, and those between the rows of a padded one, are NaN.
class TestTensor {
 public:
  TestTensor(DType dtype, int64_t rows, int64_t cols, int64_t padding = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(cols + padding),
        bytes_(static_cast<size_t>(dtype_bytes(dtype, rows * stride_) + 2 * kGuardBytes), kGuard) {
    std::fill(bytes_.begin() + kGuardBytes, bytes_.end() - kGuardBytes, uint8_t{0xFF});  // a NaN of every float type
  }
  TestTensor(TestTensor&&) = default;
  TestTensor(const TestTensor&) = default;
  ~TestTensor() {
    for (size_t i = 0; i < kGuardBytes && i < bytes_.size(); ++i) {
      if (bytes_[i] == kGuard && bytes_[bytes_.size() - 1 - i] == kGuard) continue;
      ADD_FAILURE() << "write outside of a [" << rows_ << ", " << cols_ << "] tensor";
      return;
    }
  }

  // Normal numbers with a few large and small ones; exactly representable in the tensor's type.
  TestTensor& fill(Random& random, float scale = 1) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) set(r, c, random.normal() * scale);
    return *this;
  }
  void set(int64_t row, int64_t col, float value) {
    void* at = data() + dtype_bytes(dtype_, row * stride_ + col);
    const auto put = [&](auto v) { std::memcpy(at, &v, sizeof(v)); };
    switch (dtype_) {
      case DType::kF32: return put(value);
      case DType::kF16: return put(f16::from_float(value));
      default: return put(bf16::from_float(value));
    }
  }
  float at(int64_t row, int64_t col) const {
    const void* from = data() + dtype_bytes(dtype_, row * stride_ + col);
    const auto get = [&]<class T>(T v) { return std::memcpy(&v, from, sizeof(v)), to_float(v); };
    switch (dtype_) {
      case DType::kF32: return get(0.0f);
      case DType::kF16: return get(f16{});
      default: return get(bf16{});
    }
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }
  std::byte* data() const { return reinterpret_cast<std::byte*>(const_cast<uint8_t*>(bytes_.data())) + kGuardBytes; }
  TensorView view() const { return {data(), dtype_, Shape{rows_, cols_}, stride_}; }
  TensorView vector() const { return {data(), dtype_, Shape{cols_}}; }
  // The tensor's memory with its guards.
  std::span<std::byte> all_bytes() { return std::as_writable_bytes(std::span(bytes_)); }
  // Bits of everything between the guards, padding included.
  bool same_bits(const TestTensor& other) const { return bytes_ == other.bytes_; }
  bool same_row_bits(int64_t row, const TestTensor& other, int64_t other_row) const {
    return std::memcmp(data() + dtype_bytes(dtype_, row * stride_),
                       other.data() + dtype_bytes(dtype_, other_row * other.stride_),
                       static_cast<size_t>(dtype_bytes(dtype_, cols_))) == 0;
  }

 private:
  static constexpr int64_t kGuardBytes = 128;
  static constexpr uint8_t kGuard = 0xA5;
  DType dtype_;
  int64_t rows_, cols_, stride_;
  std::vector<uint8_t> bytes_;
};

inline double max_error(const TestTensor& tensor, const TestTensor& reference) {
  double error = 0;
  for (int64_t r = 0; r < tensor.rows(); ++r)
    for (int64_t c = 0; c < tensor.cols(); ++c) {
      const double difference = std::abs(double{tensor.at(r, c)} - reference.at(r, c));
      if (!(difference <= std::numeric_limits<double>::max())) return INFINITY;  // NaN too
      error = std::max(error, difference);
    }
  return error;
}

// The op's largest error against the reference is at most twice that of a naive loop of the same
// precision. What one rounding of the largest value to bf16, or two units of it in f32, come to is always
// allowed: over a few numbers a naive loop is sometimes exact by luck.
inline void expect_as_exact_as(const TestTensor& naive, const TestTensor& out, const TestTensor& reference) {
  float largest = 0;
  for (int64_t r = 0; r < reference.rows(); ++r)
    for (int64_t c = 0; c < reference.cols(); ++c) largest = std::max(largest, std::abs(reference.at(r, c)));
  const double unit = largest * (out.dtype() == DType::kF32 ? 0x1p-22 : 0x1p-8);
  EXPECT_LE(max_error(out, reference), std::max(2 * max_error(naive, reference), unit))
      << "largest value " << largest << ", naive error " << max_error(naive, reference);
}

}  // namespace hearth
