// SPDX-License-Identifier: Apache-2.0
// What every backend of silu_mul checks first.
#include "hearth/kernels/silu_mul/silu_mul.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const SiluMulArgs& args) {
  constexpr std::string_view kOp = "silu_mul";
  const bool has_out = args.out || !args.rounded;
  const ConstTensorView result = has_out ? args.out : args.rounded.codes;
  if (result.shape.rank() != 2)
    return invalid_argument("{}: {} is {}, wanted [tokens, ffn]", kOp, has_out ? "out" : "codes",
                            to_string(result.shape));
  const int64_t rows = result.shape[0], ffn = result.shape[1];
  if (has_out) HEARTH_TRY(check_matrix(kOp, "out", args.out, rows, ffn));
  HEARTH_TRY(check_matrix(kOp, "gate_up", args.gate_up, rows, 2 * ffn));
  HEARTH_TRY(check_float(kOp, "gate_up", args.gate_up));
  if (has_out) HEARTH_TRY(check_same_dtype(kOp, "out", args.out, "gate_up", args.gate_up));
  return args.rounded ? check_rounded(kOp, args.rounded, rows, ffn) : Status();
}

}  // namespace hearth
