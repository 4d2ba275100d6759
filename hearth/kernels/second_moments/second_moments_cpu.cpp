// SPDX-License-Identifier: Apache-2.0
// second_moments on the CPU: the dense product of cpu/product.h, and threads that take channels for the magnitudes.
#include <algorithm>
#include <cmath>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/cpu/product.h"
#include "hearth/kernels/second_moments/second_moments.h"

namespace hearth {

static_assert(kProductDepth == kMomentTokens);

Status second_moments_cpu(const SecondMomentsArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  const int64_t channels = args.x.cols(), tokens = args.x.rows();
  const auto* const x = static_cast<const float*>(args.x.data);
  auto* const sums = static_cast<double*>(args.sums.data);
  auto* const sum_abs = static_cast<double*>(args.sum_abs.data);
  auto* const max_abs = static_cast<float*>(args.max_abs.data);
  cpu::parallel_items(exec, args.add ? 0 : channels, channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::fill_n(sums + i * args.sums.row_stride, channels, 0.0);
    std::fill(sum_abs + begin, sum_abs + end, 0.0);
    std::fill(max_abs + begin, max_abs + end, 0.0f);
  });
  add_product(ProductOf<float, double>{.m = channels,
                                       .n = channels,
                                       .p = tokens,
                                       .a = x,
                                       .lda = args.x.row_stride,
                                       .b = x,
                                       .ldb = args.x.row_stride,
                                       .c = sums,
                                       .ldc = args.sums.row_stride,
                                       .upper_only = true},
              exec.pool);
  cpu::parallel_items(exec, channels, tokens, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* const row = x + t * args.x.row_stride;
      for (int64_t i = begin; i < end; ++i) {
        const float magnitude = std::abs(row[i]);
        sum_abs[i] += double{magnitude};
        max_abs[i] = std::max(max_abs[i], magnitude);
      }
    }
  });
  return {};
}

}  // namespace hearth
