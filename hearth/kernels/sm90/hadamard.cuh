// SPDX-License-Identifier: Apache-2.0
// The rotation of tensor/hadamard.h by a team of threads, to the same bits: every stage's sums and differences, then
// one factor.
#pragma once

#include "hearth/kernels/sm90/rounded.cuh"

namespace hearth::sm90 {

// Rotates each of the size / n vectors of n numbers at x, in shared memory. Called by all `threads` of the team, the
// thread-th of them; sync() is the team's barrier, which x is behind already, and behind which it is afterwards.
// REQUIRES: n is a power of two and divides size.
template <class Sync>
__device__ __forceinline__ void hadamard_rotate(float* x, int n, int size, int thread, int threads, Sync sync) {
  for (int half = 1; half < n; half *= 2) {
    for (int pair = thread; pair < size / 2; pair += threads) {
      const int inside = pair & (half - 1), low = 2 * (pair - inside) + inside;
      const Rounded a = x[low], b = x[low + half];
      x[low] = a + b;
      x[low + half] = a - b;
    }
    sync();
  }
  const float factor = static_cast<float>(1 / sqrt(static_cast<double>(n)));
  for (int i = thread; i < size; i += threads) x[i] = Rounded(x[i]) * factor;
  sync();
}

}  // namespace hearth::sm90
