// SPDX-License-Identifier: Apache-2.0
// second_moments as it is written down, in double. One thread.
#include <algorithm>
#include <cmath>

#include "hearth/kernels/second_moments/second_moments.h"

namespace hearth {

Status second_moments_ref(const SecondMomentsArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  const int64_t channels = args.x.cols();
  auto* const sums = static_cast<double*>(args.sums.data);
  auto* const sum_abs = static_cast<double*>(args.sum_abs.data);
  auto* const max_abs = static_cast<float*>(args.max_abs.data);
  for (int64_t i = 0; i < channels; ++i) {
    double* const row = sums + i * args.sums.row_stride;
    if (!args.add) {
      std::fill(row + i, row + channels, 0.0);
      sum_abs[i] = 0;
      max_abs[i] = 0;
    }
    for (int64_t t = 0; t < args.x.rows(); ++t) {
      const float* const x = args.x.row<float>(t);
      for (int64_t j = i; j < channels; ++j) row[j] += double{x[i]} * double{x[j]};
      sum_abs[i] += std::abs(double{x[i]});
      max_abs[i] = std::max(max_abs[i], std::abs(x[i]));
    }
  }
  return {};
}

}  // namespace hearth
