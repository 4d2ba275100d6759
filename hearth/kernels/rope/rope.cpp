// SPDX-License-Identifier: Apache-2.0
// What every backend of the two rope ops checks first.
#include "hearth/kernels/rope/rope.h"

#include "hearth/kernels/validate.h"

namespace hearth {

Status validate(const RopeTableArgs& args) {
  constexpr std::string_view kOp = "rope_table";
  if (args.inv_freq.shape.rank() != 1)
    return invalid_argument("{}: inv_freq is {}, wanted [head_dim / 2]", kOp, to_string(args.inv_freq.shape));
  const int64_t half = args.inv_freq.shape[0];
  HEARTH_TRY(check_vector(kOp, "inv_freq", args.inv_freq, half));
  HEARTH_TRY(check_matrix(kOp, "cos_sin", args.cos_sin, static_cast<int64_t>(args.positions.size()), 2 * half));
  if (args.inv_freq.dtype != DType::kF32)
    return invalid_argument("{}: inv_freq is {}, wanted f32", kOp, dtype_name(args.inv_freq.dtype));
  if (args.cos_sin.dtype != DType::kF32)
    return invalid_argument("{}: cos_sin is {}, wanted f32", kOp, dtype_name(args.cos_sin.dtype));
  return {};
}

Status validate(const RopeKvWriteArgs& args) {
  constexpr std::string_view kOp = "rope_kv_write";
  if (args.heads < 1 || args.kv_heads < 1)
    return invalid_argument("{}: {} heads and {} kv heads, wanted at least 1", kOp, args.heads, args.kv_heads);
  if (args.head_dim < 2 || args.head_dim % 2 != 0)
    return invalid_argument("{}: head dim is {}, wanted an even number", kOp, args.head_dim);
  const KvLayout& layout = args.kv.layout;
  if (layout.kv_heads != args.kv_heads || layout.head_dim != args.head_dim)
    return invalid_argument("{}: {} kv heads of {}, the KV pool has {} of {}", kOp, args.kv_heads, args.head_dim,
                            layout.kv_heads, layout.head_dim);
  if (args.qkv.shape.rank() != 2)
    return invalid_argument("{}: qkv is {}, wanted [tokens, channels]", kOp, to_string(args.qkv.shape));
  const int64_t tokens = args.qkv.shape[0];
  HEARTH_TRY(check_matrix(kOp, "qkv", args.qkv, tokens, (args.heads + 2 * args.kv_heads) * args.head_dim));
  HEARTH_TRY(check_float(kOp, "qkv", args.qkv));
  HEARTH_TRY(check_matrix(kOp, "cos_sin", args.cos_sin, tokens, args.head_dim));
  if (args.cos_sin.dtype != DType::kF32)
    return invalid_argument("{}: cos_sin is {}, wanted f32", kOp, dtype_name(args.cos_sin.dtype));
  if (args.q_norm) {
    HEARTH_TRY(check_vector(kOp, "q_norm", args.q_norm, args.head_dim));
    HEARTH_TRY(check_float(kOp, "q_norm", args.q_norm));
  }
  if (args.k_norm) {
    HEARTH_TRY(check_vector(kOp, "k_norm", args.k_norm, args.head_dim));
    HEARTH_TRY(check_float(kOp, "k_norm", args.k_norm));
  }
  return check_kv_batch(kOp, args.kv, args.layer, args.batch, tokens);
}

}  // namespace hearth
