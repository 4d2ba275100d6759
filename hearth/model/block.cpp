// SPDX-License-Identifier: Apache-2.0
// Nothing here computes: every number is made by an op of the table.
#include "hearth/model/block.h"

#include <algorithm>
#include <cmath>

namespace hearth {

Result<LinearOps> find_linear_ops(const OpTable& ops, const Linear& linear, DType activation, std::string_view name) {
  LinearOps found;
  for (const LinearWeight& part : linear.parts) {
    HEARTH_TRY(part.format.validate(part.n, part.k).with_context(name));
    found.push_back(ops.find_linear(part.format, activation));
    if (!found.back())
      return unsupported("{}: the {} backend has no linear op for {} weights and {} activations", name, ops.backend,
                         to_string(part.format), dtype_name(activation));
  }
  return found;
}

int64_t workspace_bytes(const Linear& linear, const LinearOps& ops, int64_t rows, int threads) {
  int64_t bytes = 0;
  for (size_t i = 0; i < ops.size(); ++i)
    bytes = std::max(bytes, ops[i]->workspace_bytes(rows, linear.parts[i].n, linear.parts[i].k, threads));
  return bytes;
}

Status run_linear(const Linear& linear, const LinearOps& ops, ConstTensorView x, ConstTensorView residual,
                  TensorView out, ExecContext& exec) {
  if (linear.parts.size() == 1)
    return ops.front()->run({.x = x, .weight = &linear.parts.front(), .residual = residual, .out = out}, exec);
  int64_t row = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    const LinearWeight& part = linear.parts[i];
    LinearArgs args{.x = x, .weight = &part, .out = out.slice_cols(row, part.n)};
    if (residual) args.residual = residual.slice_cols(row, part.n);
    HEARTH_TRY(ops[i]->run(args, exec));
    row += part.n;
  }
  return {};
}

Result<BlockOps> BlockOps::find(const OpTable& ops, const LayerWeights& layer, DType activation, int64_t index) {
  const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
  const auto find = [&](const Linear& linear, std::string_view name) {
    return find_linear_ops(ops, linear, activation, fmt::format("layer {} {}", index, name));
  };
  BlockOps found;
  HEARTH_TRY_ASSIGN(found.qkv, find(layer.qkv, "qkv_proj"));
  HEARTH_TRY_ASSIGN(found.o, find(layer.o, "o_proj"));
  HEARTH_TRY_ASSIGN(found.gate_up, find(ffn.gate_up, "gate_up_proj"));
  HEARTH_TRY_ASSIGN(found.down, find(ffn.down, "down_proj"));
  return found;
}

int64_t BlockOps::workspace_bytes(const LayerWeights& layer, int64_t rows, int threads) const {
  const DenseFfn& dense = std::get<DenseFfn>(layer.ffn);
  return std::max({hearth::workspace_bytes(layer.qkv, qkv, rows, threads),
                   hearth::workspace_bytes(layer.o, o, rows, threads),
                   hearth::workspace_bytes(dense.gate_up, gate_up, rows, threads),
                   hearth::workspace_bytes(dense.down, down, rows, threads)});
}

Status forward_block(const BlockArgs& args, Comm& comm, ExecContext& exec) {
  const ModelConfig& c = *args.config;
  const OpTable& ops = *args.ops;
  const LayerWeights& layer = *args.weights;
  const DenseFfn& dense = std::get<DenseFfn>(layer.ffn);
  const BlockBuffers& b = args.buffers;
  const DType act = args.activation;
  const int64_t tokens = args.batch->num_tokens();
  const int64_t heads = c.heads / args.shard.size, kv_heads = c.kv_heads / args.shard.size;
  const int64_t ffn_size = c.intermediate_size / args.shard.size;
  const float eps = static_cast<float>(c.rms_norm_eps);
  const auto observe = [&](BlockPoint point, ConstTensorView values) -> Status {
    return args.observer ? (*args.observer)(point, values) : Status();
  };

  const TensorView hidden(b.hidden, act, {tokens, c.hidden_size});
  const TensorView normed(b.normed, act, {tokens, c.hidden_size});
  const TensorView qkv(b.qkv, act, {tokens, (heads + 2 * kv_heads) * c.head_dim});
  const TensorView attention(b.attention, act, {tokens, heads * c.head_dim});
  const TensorView gate_up(b.gate_up, act, {tokens, 2 * ffn_size});
  const TensorView ffn(b.ffn, act, {tokens, ffn_size});
  const TensorView cos_sin(b.cos_sin, DType::kF32, {tokens, c.head_dim});
  // Row-parallel layers add up over the ranks; the residual goes in once.
  const ConstTensorView residual = comm.rank() == 0 ? ConstTensorView(hidden) : ConstTensorView();

  HEARTH_TRY(ops.rmsnorm({.x = hidden, .weight = layer.input_norm, .out = normed, .eps = eps}, exec));
  HEARTH_TRY(observe(BlockPoint::kQkvInput, normed));
  HEARTH_TRY(run_linear(layer.qkv, args.linears->qkv, normed, {}, qkv, exec));
  HEARTH_TRY(observe(BlockPoint::kQkv, qkv));
  HEARTH_TRY(ops.rope_kv_write({.qkv = qkv,
                                .cos_sin = cos_sin,
                                .q_norm = layer.q_norm,
                                .k_norm = layer.k_norm,
                                .norm_eps = eps,
                                .heads = heads,
                                .kv_heads = kv_heads,
                                .head_dim = c.head_dim,
                                .layer = args.layer,
                                .k_channel_scale = layer.k_channel_scale,
                                .k_scale = layer.k_scale,
                                .v_scale = layer.v_scale,
                                .kv = args.kv,
                                .batch = args.batch},
                               exec));
  HEARTH_TRY(ops.attention({.q = qkv.slice_cols(0, heads * c.head_dim),
                            .out = attention,
                            .heads = heads,
                            .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim)),
                            .window = args.window,
                            .layer = args.layer,
                            .k_channel_scale = layer.k_channel_scale,
                            .k_scale = layer.k_scale,
                            .v_scale = layer.v_scale,
                            .kv = args.kv,
                            .batch = args.batch},
                           exec));
  HEARTH_TRY(observe(BlockPoint::kOInput, attention));
  HEARTH_TRY(run_linear(layer.o, args.linears->o, attention, residual, hidden, exec));
  HEARTH_TRY(comm.all_reduce_sum(hidden));

  HEARTH_TRY(ops.rmsnorm({.x = hidden, .weight = layer.post_attention_norm, .out = normed, .eps = eps}, exec));
  HEARTH_TRY(observe(BlockPoint::kGateUpInput, normed));
  HEARTH_TRY(run_linear(dense.gate_up, args.linears->gate_up, normed, {}, gate_up, exec));
  HEARTH_TRY(ops.silu_mul({.gate_up = gate_up, .out = ffn}, exec));
  HEARTH_TRY(observe(BlockPoint::kDownInput, ffn));
  HEARTH_TRY(run_linear(dense.down, args.linears->down, ffn, residual, hidden, exec));
  return comm.all_reduce_sum(hidden);
}

}  // namespace hearth
