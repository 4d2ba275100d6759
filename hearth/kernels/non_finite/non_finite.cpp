// SPDX-License-Identifier: Apache-2.0
// What every backend of non_finite checks first.
#include "hearth/kernels/non_finite/non_finite.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const NonFiniteArgs& args) {
  constexpr std::string_view kOp = "non_finite";
  if (args.x.shape.rank() != 2)
    return invalid_argument("{}: x is {}, wanted [rows, cols]", kOp, to_string(args.x.shape));
  HEARTH_TRY(check_matrix(kOp, "x", args.x, args.x.rows(), args.x.cols()));
  if (args.x.dtype != DType::kF32) return invalid_argument("{}: x is {}, wanted f32", kOp, dtype_name(args.x.dtype));
  return args.first != nullptr ? Status() : invalid_argument("{}: nowhere to put what is found", kOp);
}

}  // namespace hearth
