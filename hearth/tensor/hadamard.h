// SPDX-License-Identifier: Apache-2.0
// The normalised Sylvester-Hadamard rotation, in place: H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]], divided by sqrt(n).
// It is symmetric and its own inverse. The KV cache rotates keys and queries with it, the quantizer folds it into
// weights. Every element is summed in one fixed order, so that equal inputs give equal bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <span>

#include "hearth/base/check.h"

namespace hearth {

namespace detail {

// Sums and differences of pairs that lie apart.
template <class T>
void hadamard_butterflies(T* __restrict low, T* __restrict high, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const T a = low[i], b = high[i];
    low[i] = a + b;
    high[i] = a - b;
  }
}

// The stages of distance 1, 2 and 4 of eight numbers, in registers.
template <class T>
void hadamard_of_8(T* x) {
  const T a0 = x[0] + x[1], a1 = x[0] - x[1], a2 = x[2] + x[3], a3 = x[2] - x[3];
  const T a4 = x[4] + x[5], a5 = x[4] - x[5], a6 = x[6] + x[7], a7 = x[6] - x[7];
  const T b0 = a0 + a2, b1 = a1 + a3, b2 = a0 - a2, b3 = a1 - a3;
  const T b4 = a4 + a6, b5 = a5 + a7, b6 = a4 - a6, b7 = a5 - a7;
  x[0] = b0 + b4, x[1] = b1 + b5, x[2] = b2 + b6, x[3] = b3 + b7;
  x[4] = b0 - b4, x[5] = b1 - b5, x[6] = b2 - b6, x[7] = b3 - b7;
}

}  // namespace detail

// x <- x H, the fast Walsh-Hadamard transform in T (float or double). REQUIRES: x.size() is a power of two.
template <class T>
void hadamard_rotate(std::span<T> x) {
  const size_t n = x.size();
  HEARTH_CHECK(std::has_single_bit(n), "Hadamard matrix of size {}", n);
  size_t half = 1;
  if (n >= 8) {
    for (size_t i = 0; i < n; i += 8) detail::hadamard_of_8(&x[i]);
    half = 8;
  }
  for (; half < n; half *= 2)
    for (size_t i = 0; i < n; i += 2 * half) detail::hadamard_butterflies(&x[i], &x[i + half], half);
  const T factor = static_cast<T>(1 / std::sqrt(static_cast<double>(n)));
  for (T& value : x) value *= factor;
}

}  // namespace hearth
