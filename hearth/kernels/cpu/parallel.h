// SPDX-License-Identifier: Apache-2.0
// How the element-wise CPU ops share work among threads: a dispatch to the pool costs a few microseconds,
// so a thread is worth waking only for about as much work. Which thread computes a row never changes the
// row, so the split is free to depend on the sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hearth/base/function_ref.h"
#include "hearth/kernels/exec.h"

namespace hearth::cpu {

// The least work for one thread, in elements read of a memory-bound op (16,384 floats take about 4 us).
inline constexpr int64_t kElementsPerThread = 16384;

// Calls body(begin, end) for contiguous ranges that cover [0, count), each item costing `elements` of work;
// inline where the whole is too little to share.
inline void parallel_items(ExecContext& exec, int64_t count, int64_t elements,
                           FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
  if (exec.pool == nullptr || count <= grain) return body(0, count);
  exec.pool->parallel_for(count, grain, [&](int64_t begin, int64_t end, int) { body(begin, end); });
}

}  // namespace hearth::cpu
