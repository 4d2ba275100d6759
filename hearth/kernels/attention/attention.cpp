// SPDX-License-Identifier: Apache-2.0
// What every backend of attention checks first.
#include "hearth/kernels/attention/attention.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const AttentionArgs& args) {
  constexpr std::string_view kOp = "attention";
  const KvLayout& layout = args.kv.layout;
  if (layout.kv_heads < 1 || layout.head_dim < 1 || layout.block_tokens < 1)
    return invalid_argument("{}: the KV pool has {} kv heads of {} in blocks of {} tokens, wanted at least 1", kOp,
                            layout.kv_heads, layout.head_dim, layout.block_tokens);
  if (args.heads < 1 || args.heads % layout.kv_heads != 0)
    return invalid_argument("{}: {} heads, wanted a multiple of the {} kv heads", kOp, args.heads, layout.kv_heads);
  if (args.window < 0) return invalid_argument("{}: window is {}, wanted 0 or more", kOp, args.window);
  if (args.q.shape.rank() != 2)
    return invalid_argument("{}: q is {}, wanted [tokens, heads * head_dim]", kOp, to_string(args.q.shape));
  const int64_t tokens = args.q.shape[0], channels = args.heads * layout.head_dim;
  HEARTH_TRY(check_matrix(kOp, "q", args.q, tokens, channels));
  HEARTH_TRY(check_float(kOp, "q", args.q));
  HEARTH_TRY(check_matrix(kOp, "out", args.out, tokens, channels));
  HEARTH_TRY(check_same_dtype(kOp, "out", args.out, "q", args.q));
  return check_kv_batch(kOp, args.kv, args.layer, args.batch, tokens);
}

}  // namespace hearth
