// SPDX-License-Identifier: Apache-2.0
// rmsnorm as it is written down: one loop, in double, one rounding at the end. What the other backends are
// tested against. One thread.
#include <cmath>

#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/rmsnorm/rmsnorm.h"

namespace hearth {
namespace {

template <class T, class W>
void rmsnorm_rows(const RmsNormArgs& args) {
  const int64_t hidden = args.x.cols();
  const W* weight = args.weight.row<W>(0);
  for (int64_t r = 0; r < args.x.rows(); ++r) {
    const T* x = args.x.row<T>(r);
    const T* sum = x;
    if (args.residual) {
      T* residual = args.residual.row<T>(r);
      for (int64_t i = 0; i < hidden; ++i) residual[i] = from_float<T>(to_float(x[i]) + to_float(residual[i]));
      sum = residual;
    }
    double squares = 0;
    for (int64_t i = 0; i < hidden; ++i) squares += double{to_float(sum[i])} * to_float(sum[i]);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden) + args.eps);
    const auto value = [&](int64_t i) {
      return from_float<T>(static_cast<float>(to_float(sum[i]) * scale * to_float(weight[i])));
    };
    if (args.rounded) round_row(args.rounded, r, [&](int64_t i) { return to_float(value(i)); });
    if (args.out)
      for (int64_t i = 0; i < hidden; ++i) args.out.row<T>(r)[i] = value(i);
  }
}

}  // namespace

Status rmsnorm_ref(const RmsNormArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  const bool x_f32 = args.x.dtype == DType::kF32, weight_f32 = args.weight.dtype == DType::kF32;
  if (x_f32) {
    weight_f32 ? rmsnorm_rows<float, float>(args) : rmsnorm_rows<float, bf16>(args);
  } else {
    weight_f32 ? rmsnorm_rows<bf16, float>(args) : rmsnorm_rows<bf16, bf16>(args);
  }
  return {};
}

}  // namespace hearth
