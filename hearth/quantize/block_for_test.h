// SPDX-License-Identifier: Apache-2.0
// A transformer block of random weights, and what it computes: the quantizer's tests compare blocks before and after.
#pragma once

#include <cmath>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/block.h"
#include "hearth/model/rope_frequencies.h"
#include "hearth/quantize/layer.h"

namespace hearth::testing {

inline ModelConfig small_config() {
  ModelConfig c;
  c.hidden_size = 48;
  c.intermediate_size = 80;
  c.layers = 1;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = 16;
  c.max_positions = 64;
  c.windows = {0};
  return c;
}

inline std::vector<float> normals(int64_t count, float scale, Random& random) {
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = scale * random.normal();
  return out;
}

inline LayerTensors random_layer(const ModelConfig& c, Random& random) {
  const auto linear = [&](int64_t n, int64_t k, bool bias) {
    LayerLinear out{.n = n, .k = k, .w = normals(n * k, 1 / std::sqrt(static_cast<float>(k)), random), .bias = {}};
    if (bias) out.bias = normals(n, 0.5f, random);
    return out;
  };
  const auto norm = [&](int64_t size) {
    std::vector<float> out(static_cast<size_t>(size));
    for (float& w : out) w = random.uniform(0.5f, 1.5f);
    return out;
  };
  LayerTensors t;
  t.input_norm = norm(c.hidden_size);
  t.post_attention_norm = norm(c.hidden_size);
  if (c.qk_norm) {
    t.q_norm = norm(c.head_dim);
    t.k_norm = norm(c.head_dim);
  }
  t.q = linear(c.heads * c.head_dim, c.hidden_size, c.qkv_bias);
  t.k = linear(c.kv_heads * c.head_dim, c.hidden_size, c.qkv_bias);
  t.v = linear(c.kv_heads * c.head_dim, c.hidden_size, c.qkv_bias);
  t.o = linear(c.hidden_size, c.heads * c.head_dim, c.o_bias);
  t.gate = linear(c.intermediate_size, c.hidden_size, c.mlp_bias);
  t.up = linear(c.intermediate_size, c.hidden_size, c.mlp_bias);
  t.down = linear(c.hidden_size, c.intermediate_size, c.mlp_bias);
  return t;
}

// The whole context of one sequence in one step, and an empty pool for it.
struct OneSequence {
  std::vector<int32_t> ids, positions, starts, context;
  std::vector<int64_t> blocks{0};
  HostBuffer memory;
  KvView kv;
  StepBatch batch;

  OneSequence(const ModelConfig& c, int64_t tokens, KvFormatId format)
      : ids(static_cast<size_t>(tokens), 0),
        positions(ids.size()),
        starts{0, static_cast<int32_t>(tokens)},
        context{static_cast<int32_t>(tokens)} {
    for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int32_t>(t);
    batch = {.tokens = ids,
             .positions = positions,
             .query_start = starts,
             .context_len = context,
             .block_table = blocks,
             .block_table_stride = 1};
    const auto layout = KvLayout::make(format, 1, c.kv_heads, c.head_dim, tokens);
    HEARTH_CHECK(layout.has_value(), "{}", layout.error().message);
    kv.layout = *layout;
    memory = *HostBuffer::allocate(kv.layout.block_bytes());
    kv.base = memory.data();
  }
  OneSequence(const OneSequence&) = delete;
};

// cos_sin [tokens, head_dim]
inline std::vector<float> rope_table(const ModelConfig& c, const std::vector<int32_t>& positions) {
  const std::vector<float> inv_freq = rope_inv_freq(c);
  const int64_t tokens = static_cast<int64_t>(positions.size());
  std::vector<float> cos_sin(static_cast<size_t>(tokens * c.head_dim));
  ExecContext exec;
  const Status status = rope_table_ref({.positions = positions,
                                        .inv_freq = {inv_freq.data(), DType::kF32, Shape{c.head_dim / 2}},
                                        .cos_sin = TensorView(cos_sin.data(), DType::kF32, Shape{tokens, c.head_dim})},
                                       exec);
  HEARTH_CHECK(status.has_value(), "{}", status.error().message);
  return cos_sin;
}

// Attention of one sequence over the cache of `format`, by the reference ops.
//   qkv [tokens, (heads + 2 kv_heads) head_dim] before RoPE; channel_scale, channel_offset [kv_heads, head_dim] or
//   empty
inline std::vector<float> run_attention(const ModelConfig& c, std::vector<float> qkv, KvFormatId format,
                                        const std::vector<float>& channel_scale = {},
                                        const std::vector<float>& channel_offset = {}) {
  const int64_t columns = (c.heads + 2 * c.kv_heads) * c.head_dim, tokens = static_cast<int64_t>(qkv.size()) / columns;
  const OneSequence sequence(c, tokens, format);
  std::vector<float> cos_sin = rope_table(c, sequence.positions);
  std::vector<float> out(static_cast<size_t>(tokens * c.heads * c.head_dim), NAN);
  ConstTensorView scale, offset;
  if (!channel_scale.empty()) scale = {channel_scale.data(), DType::kF32, Shape{c.kv_heads, c.head_dim}};
  if (!channel_offset.empty()) offset = {channel_offset.data(), DType::kF32, Shape{c.kv_heads, c.head_dim}};
  const TensorView rows(qkv.data(), DType::kF32, Shape{tokens, columns});
  ExecContext exec;
  const Status written =
      rope_kv_write_ref({.qkv = rows,
                         .cos_sin = TensorView(cos_sin.data(), DType::kF32, Shape{tokens, c.head_dim}),
                         .heads = c.heads,
                         .kv_heads = c.kv_heads,
                         .head_dim = c.head_dim,
                         .k_channel_scale = scale,
                         .k_channel_offset = offset,
                         .kv = sequence.kv,
                         .batch = &sequence.batch},
                        exec);
  HEARTH_CHECK(written.has_value(), "{}", written.error().message);
  AttentionArgs attention{.q = rows.slice_cols(0, c.heads * c.head_dim),
                          .out = TensorView(out.data(), DType::kF32, Shape{tokens, c.heads * c.head_dim}),
                          .heads = c.heads,
                          .scale = 1 / std::sqrt(static_cast<float>(c.head_dim))};
  attention.kv = sequence.kv;
  attention.batch = &sequence.batch;
  attention.k_channel_scale = scale;
  const Status attended = attention_ref(attention, exec);
  HEARTH_CHECK(attended.has_value(), "{}", attended.error().message);
  return out;
}

// A block run in f32 on one sequence from position 0, K and V kept as `format` says.
//   hidden [tokens, hidden]; returns the residual stream after the block.
struct BlockRun {
  std::vector<float> hidden;
  std::vector<float> cos_sin;  // [tokens, head_dim]
};
inline BlockRun run_block(const ModelConfig& c, const LayerTensors& layer, std::vector<float> hidden,
                          KvFormatId format = KvFormatId::kF32, const BlockObserver* observer = nullptr) {
  const int64_t tokens = static_cast<int64_t>(hidden.size()) / c.hidden_size;
  const OpTable& ops = cpu_ops();
  ThreadPool pool(1);
  const LayerWeights weights = layer_weights(layer);
  const auto linears = BlockOps::find(ops, weights, DType::kF32, 0);
  HEARTH_CHECK(linears.has_value(), "{}", linears.error().message);

  const OneSequence sequence(c, tokens, format);
  auto scratch = HostBuffer::allocate(std::max(linears->workspace_bytes(weights, tokens, 1),
                                               ops.attention_workspace_bytes(tokens, c.heads, c.head_dim, tokens, 1)) +
                                      64);
  ExecContext exec{.pool = &pool, .workspace = scratch->bytes()};

  BlockRun run{std::move(hidden), rope_table(c, sequence.positions)};
  const auto floats = [&](int64_t columns) { return std::vector<float>(static_cast<size_t>(tokens * columns), NAN); };
  std::vector<float> normed = floats(c.hidden_size), qkv = floats((c.heads + 2 * c.kv_heads) * c.head_dim),
                     attention = floats(c.heads * c.head_dim), gate_up = floats(2 * c.intermediate_size),
                     ffn = floats(c.intermediate_size);
  SingleRank comm;
  const Status status = forward_block({.config = &c,
                                       .ops = &ops,
                                       .weights = &weights,
                                       .linears = &*linears,
                                       .batch = &sequence.batch,
                                       .kv = sequence.kv,
                                       .buffers = {.hidden = run.hidden.data(),
                                                   .normed = normed.data(),
                                                   .qkv = qkv.data(),
                                                   .attention = attention.data(),
                                                   .gate_up = gate_up.data(),
                                                   .ffn = ffn.data(),
                                                   .cos_sin = run.cos_sin.data()},
                                       .observer = observer},
                                      comm, exec);
  HEARTH_CHECK(status.has_value(), "{}", status.error().message);
  return run;
}

}  // namespace hearth::testing
