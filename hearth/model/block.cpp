// SPDX-License-Identifier: Apache-2.0
// Nothing here computes: every number is made by an op of the table.
#include "hearth/model/block.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "hearth/base/check.h"

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

ActFormat rounded_input(const OpTable& ops, const Linear& linear, const LinearOps& found) {
  if (!ops.rounds_outputs || linear.parts.empty()) return ActFormat::kNative;
  const ActFormat act = linear.parts.front().format.act;
  // Static scales are one for each part. Scales lie behind the codes, in the place of the values.
  if ((act == ActFormat::kE4m3Static && linear.parts.size() > 1) || linear.k() % 64 != 0) return ActFormat::kNative;
  for (size_t i = 0; i < found.size(); ++i)
    if (linear.parts[i].format.act != act || !found[i]->takes_rounded || !found[i]->takes_rounded(linear.parts[i]))
      return ActFormat::kNative;
  return act;
}

Status run_linear(const Linear& linear, const LinearOps& ops, const LinearInput& x, ConstTensorView residual,
                  TensorView out, ExecContext& exec) {
  if (linear.parts.size() == 1)
    return ops.front()->run(
        {.x = x.x, .weight = &linear.parts.front(), .residual = residual, .out = out, .x_scale = x.x_scale}, exec);
  constexpr size_t kMostParts = 4;
  std::array<LinearArgs, kMostParts> parts;
  HEARTH_CHECK(ops.size() <= kMostParts, "a linear of {} parts", ops.size());
  int64_t row = 0;
  for (size_t i = 0; i < ops.size(); ++i) {
    const LinearWeight& part = linear.parts[i];
    parts[i] = {.x = x.x, .weight = &part, .out = out.slice_cols(row, part.n), .x_scale = x.x_scale};
    if (residual) parts[i].residual = residual.slice_cols(row, part.n);
    row += part.n;
  }
  const bool together =
      std::ranges::all_of(ops, [&](const LinearOp* op) { return op == ops.front() && op->run_parts; });
  if (together && !ops.empty()) return ops.front()->run_parts(std::span(parts).first(ops.size()), exec);
  for (size_t i = 0; i < ops.size(); ++i) HEARTH_TRY(ops[i]->run(parts[i], exec));
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
  found.qkv_input = rounded_input(ops, layer.qkv, found.qkv);
  found.gate_up_input = rounded_input(ops, ffn.gate_up, found.gate_up);
  found.down_input = rounded_input(ops, ffn.down, found.down);
  return found;
}

int64_t BlockOps::workspace_bytes(const LayerWeights& layer, int64_t rows, int threads) const {
  const DenseFfn& dense = std::get<DenseFfn>(layer.ffn);
  return std::max({hearth::workspace_bytes(layer.qkv, qkv, rows, threads),
                   hearth::workspace_bytes(layer.o, o, rows, threads),
                   hearth::workspace_bytes(dense.gate_up, gate_up, rows, threads),
                   hearth::workspace_bytes(dense.down, down, rows, threads)});
}

namespace {

// What an op hands to the linear behind it: its values, or their rounding in the same memory.
struct Handover {
  TensorView values;
  RoundedRows rounded;

  TensorView out() const { return rounded ? TensorView() : values; }
  LinearInput input() const { return rounded ? LinearInput(rounded) : LinearInput(values); }
};

// The parts of a block that forward_block() puts together.
class Block {
 public:
  Block(const BlockArgs& args, Comm& comm, ExecContext& exec)
      : args_(args),
        c_(*args.config),
        layer_(*args.weights),
        dense_(std::get<DenseFfn>(layer_.ffn)),
        comm_(comm),
        exec_(exec),
        tokens_(args.batch->num_tokens()),
        heads_(c_.heads / args.shard.size),
        kv_heads_(c_.kv_heads / args.shard.size),
        ffn_size_(c_.intermediate_size / args.shard.size),
        eps_(static_cast<float>(c_.rms_norm_eps)) {}

  Status run() {
    HEARTH_CHECK(args_.from != BlockPoint::kQkv, "a block does not begin after its first linear");
    if (args_.from < BlockPoint::kOInput) HEARTH_TRY(attend());
    if (ends_at(BlockPoint::kOInput)) return {};
    if (args_.from <= BlockPoint::kOInput) HEARTH_TRY(add_attention());
    if (args_.from <= BlockPoint::kGateUpInput) HEARTH_TRY(gate());
    if (ends_at(BlockPoint::kDownInput)) return {};
    return add_ffn();
  }

 private:
  bool ends_at(BlockPoint point) const { return args_.until && *args_.until <= point; }
  Status observe(BlockPoint point, ConstTensorView values) {
    return args_.observer ? (*args_.observer)(point, values) : Status();
  }
  TensorView values(void* at, int64_t cols) const { return {at, args_.activation, {tokens_, cols}}; }
  TensorView hidden() const { return values(args_.buffers.hidden, c_.hidden_size); }
  TensorView normed() const { return values(args_.buffers.normed, c_.hidden_size); }
  TensorView attention() const { return values(args_.buffers.attention, heads_ * c_.head_dim); }
  TensorView ffn() const { return values(args_.buffers.ffn, ffn_size_); }
  // Values that someone else looks at are not rounded.
  Handover hand_over(TensorView values, const Linear& to, ActFormat act) const {
    Handover handover{values, {}};
    if (act == ActFormat::kNative || args_.observer || args_.until) return handover;
    auto* const codes = static_cast<std::byte*>(values.data);
    handover.rounded.codes = TensorView(codes, DType::kE4m3, values.shape);
    handover.rounded.scales = TensorView(codes + values.shape.count(), DType::kF32, {tokens_});
    if (act == ActFormat::kE4m3Static) handover.rounded.static_scale = to.parts.front().act_scale;
    return handover;
  }
  // Down's input; as values where the block begins with it.
  Handover down_input() const {
    const bool is_given = args_.from == BlockPoint::kDownInput;
    return hand_over(ffn(), dense_.down, is_given ? ActFormat::kNative : args_.linears->down_input);
  }
  // Row-parallel layers add up over the ranks; the residual goes in once.
  ConstTensorView residual() const { return comm_.rank() == 0 ? ConstTensorView(hidden()) : ConstTensorView(); }

  Status norm(ConstTensorView weight, const Handover& to) {
    return args_.ops->rmsnorm({.x = hidden(), .weight = weight, .out = to.out(), .eps = eps_, .rounded = to.rounded},
                              exec_);
  }

  // To O's input.
  Status attend() {
    const OpTable& ops = *args_.ops;
    const TensorView qkv = values(args_.buffers.qkv, (heads_ + 2 * kv_heads_) * c_.head_dim);
    const TensorView cos_sin(args_.buffers.cos_sin, DType::kF32, {tokens_, c_.head_dim});
    const Handover to_qkv = hand_over(normed(), layer_.qkv, args_.linears->qkv_input);
    HEARTH_TRY(norm(layer_.input_norm, to_qkv));
    HEARTH_TRY(observe(BlockPoint::kQkvInput, normed()));
    if (ends_at(BlockPoint::kQkvInput)) return {};
    HEARTH_TRY(run_linear(layer_.qkv, args_.linears->qkv, to_qkv.input(), {}, qkv, exec_));
    HEARTH_TRY(observe(BlockPoint::kQkv, qkv));
    if (ends_at(BlockPoint::kQkv)) return {};
    HEARTH_TRY(ops.rope_kv_write({.qkv = qkv,
                                  .cos_sin = cos_sin,
                                  .q_norm = layer_.q_norm,
                                  .k_norm = layer_.k_norm,
                                  .norm_eps = eps_,
                                  .heads = heads_,
                                  .kv_heads = kv_heads_,
                                  .head_dim = c_.head_dim,
                                  .layer = args_.layer,
                                  .k_channel_scale = layer_.k_channel_scale,
                                  .k_scale = layer_.k_scale,
                                  .v_scale = layer_.v_scale,
                                  .k_channel_offset = layer_.k_channel_offset,
                                  .kv = args_.kv,
                                  .batch = args_.batch},
                                 exec_));
    HEARTH_TRY(ops.attention({.q = qkv.slice_cols(0, heads_ * c_.head_dim),
                              .out = attention(),
                              .heads = heads_,
                              .scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim)),
                              .window = args_.window,
                              .layer = args_.layer,
                              .k_channel_scale = layer_.k_channel_scale,
                              .k_scale = layer_.k_scale,
                              .v_scale = layer_.v_scale,
                              .kv = args_.kv,
                              .batch = args_.batch},
                             exec_));
    return observe(BlockPoint::kOInput, attention());
  }

  Status add_attention() {
    HEARTH_TRY(run_linear(layer_.o, args_.linears->o, attention(), residual(), hidden(), exec_));
    return comm_.all_reduce_sum(hidden());
  }

  // To down's input.
  Status gate() {
    const TensorView gate_up = values(args_.buffers.gate_up, 2 * ffn_size_);
    const Handover to_gate_up = hand_over(normed(), dense_.gate_up, args_.linears->gate_up_input);
    HEARTH_TRY(norm(layer_.post_attention_norm, to_gate_up));
    HEARTH_TRY(observe(BlockPoint::kGateUpInput, normed()));
    if (ends_at(BlockPoint::kGateUpInput)) return {};
    HEARTH_TRY(run_linear(dense_.gate_up, args_.linears->gate_up, to_gate_up.input(), {}, gate_up, exec_));
    const Handover to_down = down_input();
    HEARTH_TRY(args_.ops->silu_mul({.gate_up = gate_up, .out = to_down.out(), .rounded = to_down.rounded}, exec_));
    return observe(BlockPoint::kDownInput, ffn());
  }

  Status add_ffn() {
    HEARTH_TRY(run_linear(dense_.down, args_.linears->down, down_input().input(), residual(), hidden(), exec_));
    return comm_.all_reduce_sum(hidden());
  }

  const BlockArgs& args_;
  const ModelConfig& c_;
  const LayerWeights& layer_;
  const DenseFfn& dense_;
  Comm& comm_;
  ExecContext& exec_;
  const int64_t tokens_, heads_, kv_heads_, ffn_size_;
  const float eps_;
};

}  // namespace

Status forward_block(const BlockArgs& args, Comm& comm, ExecContext& exec) { return Block(args, comm, exec).run(); }

}  // namespace hearth
