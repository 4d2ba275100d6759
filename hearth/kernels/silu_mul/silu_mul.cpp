// SPDX-License-Identifier: Apache-2.0
// What every backend of silu_mul checks first.
#include "hearth/kernels/silu_mul/silu_mul.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const SiluMulArgs& args) {
  constexpr std::string_view kOp = "silu_mul";
  if (args.out.shape.rank() != 2)
    return invalid_argument("{}: out is {}, wanted [tokens, ffn]", kOp, to_string(args.out.shape));
  HEARTH_TRY(check_matrix(kOp, "out", args.out, args.out.shape[0], args.out.shape[1]));
  HEARTH_TRY(check_matrix(kOp, "gate_up", args.gate_up, args.out.shape[0], 2 * args.out.shape[1]));
  HEARTH_TRY(check_float(kOp, "gate_up", args.gate_up));
  return check_same_dtype(kOp, "out", args.out, "gate_up", args.gate_up);
}

}  // namespace hearth
