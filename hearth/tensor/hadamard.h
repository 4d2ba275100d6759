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

// x <- x H, the fast Walsh-Hadamard transform in T (float or double). REQUIRES: x.size() is a power of two.
template <class T>
void hadamard_rotate(std::span<T> x) {
  const size_t n = x.size();
  HEARTH_CHECK(std::has_single_bit(n), "Hadamard matrix of size {}", n);
  for (size_t half = 1; half < n; half *= 2)
    for (size_t begin = 0; begin < n; begin += 2 * half)
      for (size_t i = begin; i < begin + half; ++i) {
        const T a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  const T factor = static_cast<T>(1 / std::sqrt(static_cast<double>(n)));
  for (T& value : x) value *= factor;
}

}  // namespace hearth
