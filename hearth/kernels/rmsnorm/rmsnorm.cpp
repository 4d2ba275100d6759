// SPDX-License-Identifier: Apache-2.0
// What every backend of rmsnorm checks first.
#include "hearth/kernels/rmsnorm/rmsnorm.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const RmsNormArgs& args) {
  constexpr std::string_view kOp = "rmsnorm";
  if (args.x.shape.rank() != 2)
    return invalid_argument("{}: x is {}, wanted [rows, hidden]", kOp, to_string(args.x.shape));
  const int64_t rows = args.x.shape[0], hidden = args.x.shape[1];
  if (hidden < 1) return invalid_argument("{}: x has {} columns, wanted at least 1", kOp, hidden);
  if (args.weight.shape != Shape{hidden})
    return invalid_argument("{}: x has {} columns, weight {}", kOp, hidden, args.weight.shape.count());
  HEARTH_TRY(check_float(kOp, "x", args.x));
  HEARTH_TRY(check_float(kOp, "weight", args.weight));
  HEARTH_TRY(check_matrix(kOp, "x", args.x, rows, hidden));
  HEARTH_TRY(check_vector(kOp, "weight", args.weight, hidden));
  if (args.out || !args.rounded) {
    HEARTH_TRY(check_matrix(kOp, "out", args.out, rows, hidden));
    HEARTH_TRY(check_same_dtype(kOp, "out", args.out, "x", args.x));
  }
  if (args.rounded) HEARTH_TRY(check_rounded(kOp, args.rounded, rows, hidden));
  if (args.residual) {
    HEARTH_TRY(check_matrix(kOp, "residual", args.residual, rows, hidden));
    HEARTH_TRY(check_same_dtype(kOp, "residual", args.residual, "x", args.x));
  }
  if (!(args.eps >= 0)) return invalid_argument("{}: eps is {}, wanted at least 0", kOp, args.eps);
  return {};
}

}  // namespace hearth
