// SPDX-License-Identifier: Apache-2.0
// The transformer block, op by op. Nothing here computes: every number is made by an op of the table.
#include <algorithm>
#include <cmath>

#include "hearth/model/model.h"

namespace hearth {
namespace {

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Lays buffers one behind the other; a first pass with base null only adds up.
class Layout {
 public:
  explicit Layout(std::byte* base) : base_(base) {}
  void* take(int64_t bytes) {
    void* at = base_ ? base_ + used_ : nullptr;
    used_ += align64(bytes);
    return at;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

// The largest scratch that any op of a step asks for.
int64_t workspace_bytes(const Model& model, const StepLimits& limits, int threads) {
  const OpTable& ops = model.ops();
  int64_t bytes = ops.attention_workspace_bytes(limits.max_tokens, model.local_heads(), model.config().head_dim,
                                                limits.max_context, threads);
  const auto need = [&](const LinearOp& op, const LinearWeight& w, int64_t rows) {
    bytes = std::max(bytes, op.workspace_bytes(rows, w.n, w.k, threads));
  };
  for (int64_t i = 0; i < model.config().layers; ++i) {
    const LayerWeights& layer = model.weights().layers[static_cast<size_t>(i)];
    const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    const Model::LinearOps& linear = model.layer_ops(i);
    need(*linear.qkv, layer.qkv, limits.max_tokens);
    need(*linear.o, layer.o, limits.max_tokens);
    need(*linear.gate_up, ffn.gate_up, limits.max_tokens);
    need(*linear.down, ffn.down, limits.max_tokens);
  }
  need(model.lm_head_op(), model.weights().lm_head, limits.max_logit_rows);
  // Sampling runs between steps on the same scratch.
  if (ops.sample_workspace_bytes)
    bytes = std::max(bytes, ops.sample_workspace_bytes(model.config().vocab_size, threads));
  return bytes;
}

Status check_batch(const StepBatch& batch, const KvView& kv, const Model& model, const StepLimits& limits,
                   const Comm& comm) {
  const int64_t tokens = batch.num_tokens(), sequences = batch.num_sequences();
  if (comm.size() != model.shard().size || comm.rank() != model.shard().rank)
    return invalid_argument("step: rank {} of {}, but the model is shard {} of {}", comm.rank(), comm.size(),
                            model.shard().rank, model.shard().size);
  if (tokens < 1 || tokens > limits.max_tokens)
    return invalid_argument("step of {} tokens; wanted 1 to {}", tokens, limits.max_tokens);
  if (static_cast<int64_t>(batch.logit_rows.size()) > limits.max_logit_rows)
    return invalid_argument("step wants {} rows of logits; planned for {}", batch.logit_rows.size(),
                            limits.max_logit_rows);
  if (static_cast<int64_t>(batch.positions.size()) != tokens ||
      static_cast<int64_t>(batch.query_start.size()) != sequences + 1 || batch.query_start.front() != 0 ||
      batch.query_start.back() != tokens)
    return invalid_argument("step: {} positions and {} query starts for {} tokens of {} sequences",
                            batch.positions.size(), batch.query_start.size(), tokens, sequences);
  if (static_cast<int64_t>(batch.block_table.size()) < sequences * batch.block_table_stride)
    return invalid_argument("step: a block table of {} entries for {} sequences of stride {}", batch.block_table.size(),
                            sequences, batch.block_table_stride);
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t context = batch.context_len[static_cast<size_t>(s)], query = batch.query_len(s);
    if (query < 0 || context < query || context > limits.max_context ||
        context > batch.block_table_stride * kv.layout.block_tokens)
      return invalid_argument("step: sequence {} has {} new tokens in a context of {}; planned for {}, blocks for {}",
                              s, query, context, limits.max_context, batch.block_table_stride * kv.layout.block_tokens);
    for (int64_t i = 0; i < query; ++i) {
      const int64_t position = batch.positions[static_cast<size_t>(batch.query_start[s] + i)];
      if (position != context - query + i)
        return invalid_argument("step: token {} of sequence {} has position {}; wanted {}", i, s, position,
                                context - query + i);
    }
  }
  for (size_t i = 0; i < batch.logit_rows.size(); ++i)
    if (batch.logit_rows[i] < (i ? batch.logit_rows[i - 1] + 1 : 0) || batch.logit_rows[i] >= tokens)
      return invalid_argument("step: logit row {} is {}; wanted ascending rows below {}", i, batch.logit_rows[i],
                              tokens);
  if (std::ranges::any_of(batch.adapter, [](int32_t id) { return id >= 0; }))
    return unsupported("step: adapters are not supported");
  const KvLayout& layout = kv.layout;
  if (layout.layers != model.config().layers || layout.kv_heads != model.local_kv_heads() ||
      layout.head_dim != model.config().head_dim)
    return invalid_argument("step: the KV pool has {} layers, {} heads of {}; the model {}, {} of {}", layout.layers,
                            layout.kv_heads, layout.head_dim, model.config().layers, model.local_kv_heads(),
                            model.config().head_dim);
  if (!model.ops().supports_kv(layout.format))
    return unsupported("the {} backend has no attention for KV format {}", model.ops().backend,
                       kv_format_name(layout.format));
  return {};
}

}  // namespace

Result<ForwardBuffers> ForwardBuffers::create(const Model& model, const StepLimits& limits, ThreadPool& pool) {
  const ModelConfig& c = model.config();
  ForwardBuffers out;
  out.limits_ = limits;
  if (out.limits_.max_context == 0) out.limits_.max_context = c.max_positions;
  if (limits.max_tokens < 1 || limits.max_logit_rows < 0 || limits.max_context < 0)
    return invalid_argument("step limits of {} tokens, {} logit rows, context {}: wanted at least 1, 0 and 0",
                            limits.max_tokens, limits.max_logit_rows, limits.max_context);
  const int64_t tokens = limits.max_tokens, gathered = std::max(tokens, limits.max_logit_rows);
  const int64_t scratch = workspace_bytes(model, out.limits_, pool.size());
  const int64_t qkv_cols = (model.local_heads() + 2 * model.local_kv_heads()) * c.head_dim;
  const int64_t ffn = c.intermediate_size / model.shard().size;
  std::byte* workspace = nullptr;
  const auto lay_out = [&](Layout layout) {
    const auto take = [&](int64_t rows, int64_t cols, DType dtype) {
      return layout.take(dtype_bytes(dtype, rows * cols));
    };
    const DType act = model.activation();
    out.hidden_ = take(tokens, c.hidden_size, act);
    out.normed_ = take(gathered, c.hidden_size, act);
    out.qkv_ = take(tokens, qkv_cols, act);
    out.attention_ = take(tokens, model.local_heads() * c.head_dim, act);
    out.gate_up_ = take(tokens, 2 * ffn, act);
    out.ffn_ = take(tokens, ffn, act);
    out.cos_sin_ = take(tokens, c.head_dim, DType::kF32);
    out.logits_ = take(limits.max_logit_rows, c.vocab_size, DType::kF32);
    workspace = static_cast<std::byte*>(layout.take(scratch));
    return layout.used();
  };
  const int64_t total = lay_out(Layout(nullptr));
  HEARTH_TRY_ASSIGN(out.memory_, HostBuffer::allocate(total).with_context("activations"));
  lay_out(Layout(out.memory_.data()));
  out.exec_ = {.pool = &pool, .workspace = {workspace, static_cast<size_t>(scratch)}};
  return out;
}

Result<ConstTensorView> forward(const Model& model, const StepBatch& batch, const KvView& kv, Comm& comm,
                                ForwardBuffers& buffers) {
  HEARTH_TRY(check_batch(batch, kv, model, buffers.limits(), comm));
  const ModelConfig& c = model.config();
  const ModelWeights& weights = model.weights();
  const OpTable& ops = model.ops();
  ExecContext& exec = buffers.exec();
  const DType act = model.activation();
  const int64_t tokens = batch.num_tokens(), heads = model.local_heads(), kv_heads = model.local_kv_heads();
  const int64_t ffn_size = c.intermediate_size / model.shard().size;
  const float eps = static_cast<float>(c.rms_norm_eps);

  const TensorView hidden(buffers.hidden_, act, {tokens, c.hidden_size});
  const TensorView normed(buffers.normed_, act, {tokens, c.hidden_size});
  const TensorView qkv(buffers.qkv_, act, {tokens, (heads + 2 * kv_heads) * c.head_dim});
  const TensorView attention(buffers.attention_, act, {tokens, heads * c.head_dim});
  const TensorView gate_up(buffers.gate_up_, act, {tokens, 2 * ffn_size});
  const TensorView ffn_out(buffers.ffn_, act, {tokens, ffn_size});
  const TensorView cos_sin(buffers.cos_sin_, DType::kF32, {tokens, c.head_dim});

  HEARTH_TRY(ops.embedding({.tokens = batch.tokens, .table = weights.embedding, .out = hidden}, exec));
  HEARTH_TRY(ops.rope_table({.positions = batch.positions,
                             .inv_freq = weights.inv_freq,
                             .scale = static_cast<float>(c.rope_scaling.attention_factor),
                             .cos_sin = cos_sin},
                            exec));
  // Row-parallel layers add up over the ranks; the residual goes in once.
  const ConstTensorView residual = comm.rank() == 0 ? ConstTensorView(hidden) : ConstTensorView();
  const float attention_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  for (int64_t i = 0; i < c.layers; ++i) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    const Model::LinearOps& linear = model.layer_ops(i);
    HEARTH_TRY(ops.rmsnorm({.x = hidden, .weight = layer.input_norm, .out = normed, .eps = eps}, exec));
    HEARTH_TRY(linear.qkv->run({.x = normed, .weight = &layer.qkv, .out = qkv}, exec));
    HEARTH_TRY(ops.rope_kv_write({.qkv = qkv,
                                  .cos_sin = cos_sin,
                                  .q_norm = layer.q_norm,
                                  .k_norm = layer.k_norm,
                                  .norm_eps = eps,
                                  .heads = heads,
                                  .kv_heads = kv_heads,
                                  .head_dim = c.head_dim,
                                  .layer = i,
                                  .kv = kv,
                                  .batch = &batch},
                                 exec));
    HEARTH_TRY(ops.attention({.q = qkv.slice_cols(0, heads * c.head_dim),
                              .out = attention,
                              .heads = heads,
                              .scale = attention_scale,
                              .window = c.windows[static_cast<size_t>(i)],
                              .layer = i,
                              .kv = kv,
                              .batch = &batch},
                             exec));
    HEARTH_TRY(linear.o->run({.x = attention, .weight = &layer.o, .residual = residual, .out = hidden}, exec));
    HEARTH_TRY(comm.all_reduce_sum(hidden));

    const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    HEARTH_TRY(ops.rmsnorm({.x = hidden, .weight = layer.post_attention_norm, .out = normed, .eps = eps}, exec));
    HEARTH_TRY(linear.gate_up->run({.x = normed, .weight = &ffn.gate_up, .out = gate_up}, exec));
    HEARTH_TRY(ops.silu_mul({.gate_up = gate_up, .out = ffn_out}, exec));
    HEARTH_TRY(linear.down->run({.x = ffn_out, .weight = &ffn.down, .residual = residual, .out = hidden}, exec));
    HEARTH_TRY(comm.all_reduce_sum(hidden));
  }

  const int64_t rows = static_cast<int64_t>(batch.logit_rows.size());
  const TensorView logits(buffers.logits_, DType::kF32, {rows, c.vocab_size});
  if (rows == 0) return ConstTensorView(logits);
  // The wanted rows of the residual stream: the embedding op is a gather of rows.
  const TensorView last(buffers.normed_, act, {rows, c.hidden_size});
  HEARTH_TRY(ops.embedding({.tokens = batch.logit_rows, .table = hidden, .out = last}, exec));
  HEARTH_TRY(ops.rmsnorm({.x = last, .weight = weights.final_norm, .out = last, .eps = eps}, exec));
  HEARTH_TRY(model.lm_head_op().run({.x = last, .weight = &weights.lm_head, .out = logits}, exec));
  return ConstTensorView(logits);
}

}  // namespace hearth
