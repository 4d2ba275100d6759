// SPDX-License-Identifier: Apache-2.0
// What every backend of embedding checks first.
#include "hearth/kernels/embedding/embedding.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const EmbeddingArgs& args) {
  constexpr std::string_view kOp = "embedding";
  if (args.table.shape.rank() != 2)
    return invalid_argument("{}: table is {}, wanted [vocab, hidden]", kOp, to_string(args.table.shape));
  const int64_t vocab = args.table.shape[0], hidden = args.table.shape[1];
  HEARTH_TRY(check_matrix(kOp, "table", args.table, vocab, hidden));
  if (args.table.dtype != DType::kF32 && args.table.dtype != DType::kF16 && args.table.dtype != DType::kBf16)
    return invalid_argument("{}: table is {}, wanted f32, f16 or bf16", kOp, dtype_name(args.table.dtype));
  HEARTH_TRY(check_matrix(kOp, "out", args.out, static_cast<int64_t>(args.tokens.size()), hidden));
  HEARTH_TRY(check_float(kOp, "out", args.out));
  for (size_t t = 0; t < args.tokens.size(); ++t)
    if (args.tokens[t] < -args.sampled.rows || args.tokens[t] >= vocab)
      return invalid_argument("{}: token {} has id {}, wanted 0 to {}", kOp, t, args.tokens[t], vocab - 1);
  return {};
}

}  // namespace hearth
