// SPDX-License-Identifier: Apache-2.0
// The reference of the linear layer for plain weights: the loop of the definition, accumulated in double
// and rounded once. One thread.
#include "hearth/kernels/linear/linear.h"

namespace hearth {
namespace {

double element(const ConstTensorView& view, int64_t row, int64_t col) {
  const int64_t index = row * view.row_stride + col;
  switch (view.dtype) {
    case DType::kF16: return static_cast<const f16*>(view.data)[index].to_float();
    case DType::kBf16: return static_cast<const bf16*>(view.data)[index].to_float();
    default: return static_cast<const float*>(view.data)[index];
  }
}

}  // namespace

Status linear_ref(const LinearArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  const LinearWeight& weight = *args.weight;
  for (int64_t row = 0; row < args.x.shape[0]; ++row) {
    for (int64_t col = 0; col < weight.n; ++col) {
      double sum = 0;
      for (int64_t k = 0; k < weight.k; ++k) sum += element(args.x, row, k) * element(weight.codes, col, k);
      if (weight.bias) sum += element(weight.bias, 0, col);
      if (args.residual) sum += element(args.residual, row, col);
      const auto value = static_cast<float>(sum);
      if (args.out.dtype == DType::kF32) {
        args.out.row<float>(row)[col] = value;
      } else {
        args.out.row<bf16>(row)[col] = bf16::from_float(value);
      }
    }
  }
  return {};
}

}  // namespace hearth
