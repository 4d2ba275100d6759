// SPDX-License-Identifier: Apache-2.0
// What every backend of second_moments checks first.
#include "hearth/kernels/second_moments/second_moments.h"

#include "hearth/kernels/validate.h"

namespace hearth {
namespace {

constexpr std::string_view kOp = "second_moments";

Status check_type(std::string_view name, const ConstTensorView& view, DType wanted) {
  if (view.dtype == wanted) return {};
  return invalid_argument("{}: {} is {}, wanted {}", kOp, name, dtype_name(view.dtype), dtype_name(wanted));
}

}  // namespace

Status validate(const SecondMomentsArgs& args) {
  if (args.x.shape.rank() != 2 || args.x.cols() == 0)
    return invalid_argument("{}: x is {}, wanted [tokens, channels]", kOp, to_string(args.x.shape));
  const int64_t channels = args.x.cols();
  HEARTH_TRY(check_matrix(kOp, "x", args.x, args.x.rows(), channels));
  HEARTH_TRY(check_matrix(kOp, "sums", args.sums, channels, channels));
  HEARTH_TRY(check_vector(kOp, "sum_abs", args.sum_abs, channels));
  HEARTH_TRY(check_vector(kOp, "max_abs", args.max_abs, channels));
  HEARTH_TRY(check_type("x", args.x, DType::kF32));
  HEARTH_TRY(check_type("sums", args.sums, DType::kF64));
  HEARTH_TRY(check_type("sum_abs", args.sum_abs, DType::kF64));
  return check_type("max_abs", args.max_abs, DType::kF32);
}

}  // namespace hearth
