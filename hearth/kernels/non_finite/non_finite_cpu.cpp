// SPDX-License-Identifier: Apache-2.0
// non_finite on the CPU: threads take rows, and look at an element alone only in a row that has one.
#include <atomic>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/non_finite/non_finite.h"

namespace hearth {
namespace {

constexpr uint32_t kExponent = 0x7F800000;

// Without a branch in the loop, which compilers turn into vectors.
bool has_non_finite(const float* x, int64_t n) {
  uint32_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent ? 1U : 0U;
  return found != 0;
}

uint64_t first_of_row(const float* x, int64_t row, int64_t cols) {
  for (int64_t c = 0; c < cols; ++c)
    if (const auto bits = std::bit_cast<uint32_t>(x[c]); (bits & kExponent) == kExponent)
      return NonFinite::encode(row * cols + c, bits);
  return NonFinite::kNone;
}

}  // namespace

Status non_finite_cpu(const NonFiniteArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  const int64_t cols = args.x.cols();
  std::atomic<uint64_t> first = *args.first;
  cpu::parallel_items(exec, args.x.rows(), cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const row = args.x.row<float>(r);
      if (!has_non_finite(row, cols)) continue;
      const uint64_t found = first_of_row(row, r, cols);
      uint64_t known = first.load(std::memory_order_relaxed);
      while (found < known && !first.compare_exchange_weak(known, found, std::memory_order_relaxed)) {}
      return;
    }
  });
  *args.first = first.load(std::memory_order_relaxed);
  return {};
}

}  // namespace hearth
