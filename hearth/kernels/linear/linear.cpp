// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/linear/linear.h"

namespace hearth {
namespace {

bool is_float_16_or_32(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBf16; }

// The rows of a matrix do not overlap, and its memory is there.
Status validate_matrix(std::string_view name, const ConstTensorView& view, int64_t rows, int64_t cols) {
  if (view.shape.rank() != 2 || view.shape[0] != rows || view.shape[1] != cols)
    return invalid_argument("linear: {} has shape {}, wanted [{}, {}]", name, to_string(view.shape), rows, cols);
  if (rows > 1 && view.row_stride < cols)
    return invalid_argument("linear: {} has row stride {}, wanted at least {}", name, view.row_stride, cols);
  if (rows > 0 && cols > 0 && view.data == nullptr) return invalid_argument("linear: {} has no data", name);
  return {};
}

}  // namespace

Status validate(const LinearArgs& args) {
  if (args.weight == nullptr) return invalid_argument("linear: no weight");
  const LinearWeight& weight = *args.weight;
  if (!weight.format.is_plain() || !is_float_16_or_32(weight.codes.dtype) ||
      weight.format.code != WeightFormat::plain(weight.codes.dtype).code)
    return invalid_argument("linear: weight of format {} stored as {}, wanted plain f32, f16 or bf16",
                            to_string(weight.format), dtype_name(weight.codes.dtype));
  if (weight.k_order) return invalid_argument("linear: a plain weight has a k_order, wanted none");
  if (weight.n < 0 || weight.k < 0)
    return invalid_argument("linear: weight [{}, {}], wanted no negative size", weight.n, weight.k);
  HEARTH_TRY(validate_matrix("weight", weight.codes, weight.n, weight.k));

  if (args.x.dtype != DType::kF32 && args.x.dtype != DType::kBf16)
    return invalid_argument("linear: x is {}, wanted f32 or bf16", dtype_name(args.x.dtype));
  const int64_t m = args.x.shape.rank() == 2 ? args.x.shape[0] : 0;
  HEARTH_TRY(validate_matrix("x", args.x, m, weight.k));
  if (args.out.dtype != DType::kF32 && args.out.dtype != args.x.dtype)
    return invalid_argument("linear: out is {} and x is {}, wanted the same or f32", dtype_name(args.out.dtype),
                            dtype_name(args.x.dtype));
  HEARTH_TRY(validate_matrix("out", args.out, m, weight.n));
  if (args.residual) {
    if (args.residual.dtype != args.out.dtype)
      return invalid_argument("linear: residual is {} and out is {}, wanted the same", dtype_name(args.residual.dtype),
                              dtype_name(args.out.dtype));
    HEARTH_TRY(validate_matrix("residual", args.residual, m, weight.n));
  }
  if (weight.bias) {
    if (!is_float_16_or_32(weight.bias.dtype))
      return invalid_argument("linear: bias is {}, wanted f32, f16 or bf16", dtype_name(weight.bias.dtype));
    if (weight.bias.shape.rank() != 1 || weight.bias.shape[0] != weight.n)
      return invalid_argument("linear: bias has shape {}, wanted [{}]", to_string(weight.bias.shape), weight.n);
  }
  return {};
}

}  // namespace hearth
