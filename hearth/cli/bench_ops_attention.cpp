// SPDX-License-Identifier: Apache-2.0
// The ops of `hearth bench ops` over a paged KV cache. Its layers are the sets that take turns; keys and values are
// written by rope_kv_write itself, so that every format holds what it can hold.
#include <algorithm>
#include <cmath>

#include "hearth/cli/bench_ops.h"

namespace hearth {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kMostLayers = 64;
constexpr int64_t kWriteTokens = 2048;  // of a step that fills the cache

// A step of sequences with as many new tokens each, as their contexts' last, on the device where there is one.
struct Step {
  std::vector<int32_t> tokens, positions, query_start{0}, context_len;
  std::vector<int64_t> blocks;
  StepStaging staging;
  StepBatch batch;

  // Blocks of sequence s are the pool's from s * `blocks_each` on.
  static Result<std::unique_ptr<Step>> make(const OpRig& rig, int64_t sequences, int64_t queries, int64_t context,
                                            int64_t blocks_each, int64_t block_bytes) {
    auto step = std::make_unique<Step>();
    for (int64_t s = 0; s < sequences; ++s) {
      step->context_len.push_back(static_cast<int32_t>(context));
      step->query_start.push_back(static_cast<int32_t>((s + 1) * queries));
      for (int64_t i = context - queries; i < context; ++i) step->positions.push_back(static_cast<int32_t>(i));
      for (int64_t b = 0; b < blocks_each; ++b) step->blocks.push_back((s * blocks_each + b) * block_bytes);
    }
    step->tokens.assign(step->positions.size(), 0);
    step->batch = {.tokens = step->tokens,
                   .positions = step->positions,
                   .query_start = step->query_start,
                   .context_len = step->context_len,
                   .block_table = step->blocks,
                   .block_table_stride = blocks_each,
                   .logit_rows = {},
                   .adapter = {}};
    if (rig.memory().is_host()) return step;
    HEARTH_TRY_ASSIGN(step->staging, StepStaging::create(rig.memory(), {.tokens = sequences * queries,
                                                                        .sequences = sequences,
                                                                        .logit_rows = 0,
                                                                        .block_entries = sequences * blocks_each}));
    HEARTH_TRY_ASSIGN(step->batch, step->staging.stage(step->batch, rig.queue()));
    HEARTH_TRY(rig.queue().synchronize());
    return step;
  }
};

// A KV cache of `sequences` contexts of `length`, in as many layers as exceed the cache of the device.
struct Pool {
  KvView kv;
  Buffer memory;
  int64_t blocks_each = 0, layers = 0, layer_bytes = 0;  // the last of all sequences

  static Result<Pool> make(const OpRig& rig, const OpSizes& s, KvFormatId format, int64_t sequences, int64_t length) {
    Pool pool;
    HEARTH_TRY_ASSIGN(const KvLayout one, KvLayout::make(format, 1, s.kv_heads, s.head_dim, kBlockTokens));
    pool.layer_bytes = sequences * length * one.bytes_per_token();
    pool.layers = rig.sets_for(pool.layer_bytes, kMostLayers);
    HEARTH_TRY_ASSIGN(pool.kv.layout, KvLayout::make(format, pool.layers, s.kv_heads, s.head_dim, kBlockTokens));
    pool.blocks_each = (length + kBlockTokens - 1) / kBlockTokens;
    HEARTH_TRY_ASSIGN(pool.memory, rig.memory().allocate(sequences * pool.blocks_each * pool.kv.layout.block_bytes()));
    pool.kv.base = pool.memory.data();
    return pool;
  }
};

// Rotates and writes new tokens' keys and values.
struct KvWriter {
  const OpRig& rig;
  const OpSizes sizes;
  Buffer qkv, cos_sin, inv_freq;

  int64_t cols() const { return (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim; }
  static Result<std::unique_ptr<KvWriter>> make(const OpRig& rig, const OpSizes& s, int64_t tokens, int64_t sets) {
    std::unique_ptr<KvWriter> writer(new KvWriter{rig, s, {}, {}, {}});
    HEARTH_TRY_ASSIGN(writer->qkv, rig.numbers(rig.activation(), sets * tokens * writer->cols(), 1));
    HEARTH_TRY_ASSIGN(writer->cos_sin, rig.numbers(DType::kF32, tokens * s.head_dim, 1));
    HEARTH_TRY_ASSIGN(writer->inv_freq, rig.numbers(DType::kF32, s.head_dim / 2, 0.01f));
    return writer;
  }
  Status make_table(const Step& step) const {
    Buffer none;
    ExecContext exec = rig.exec(none);
    exec.staged = step.staging.memory();
    return rig.ops().rope_table(
        {.positions = step.batch.positions,
         .inv_freq = ConstTensorView(inv_freq.data(), DType::kF32, Shape{sizes.head_dim / 2}),
         .cos_sin = TensorView(cos_sin.data(), DType::kF32, Shape{step.batch.num_tokens(), sizes.head_dim})},
        exec);
  }
  Status write(const Step& step, const KvView& kv, int64_t layer, int64_t set) const {
    Buffer none;
    ExecContext exec = rig.exec(none);
    exec.staged = step.staging.memory();
    const int64_t tokens = step.batch.num_tokens();
    return rig.ops().rope_kv_write(
        {.qkv = TensorView(qkv.data() + dtype_bytes(rig.activation(), set * tokens * cols()), rig.activation(),
                           Shape{tokens, cols()}),
         .cos_sin = ConstTensorView(cos_sin.data(), DType::kF32, Shape{tokens, sizes.head_dim}),
         .heads = sizes.heads,
         .kv_heads = sizes.kv_heads,
         .head_dim = sizes.head_dim,
         .layer = layer,
         .kv = kv,
         .batch = &step.batch},
        exec);
  }
};

// The first context by the op, the others as copies of it.
Status fill(const OpRig& rig, const OpSizes& s, const Pool& pool, int64_t length) {
  const int64_t block_bytes = pool.kv.layout.block_bytes();
  HEARTH_TRY_ASSIGN(const auto writer, KvWriter::make(rig, s, std::min(length, kWriteTokens), 1));
  for (int64_t done = 0; done < length; done += kWriteTokens) {
    const int64_t count = std::min(kWriteTokens, length - done);
    HEARTH_TRY_ASSIGN(const auto step, Step::make(rig, 1, count, done + count, pool.blocks_each, block_bytes));
    HEARTH_TRY(writer->make_table(*step));
    for (int64_t layer = 0; layer < pool.layers; ++layer) HEARTH_TRY(writer->write(*step, pool.kv, layer, 0));
    HEARTH_TRY(rig.queue().synchronize());
  }
  return rig.repeat(pool.memory.data(), pool.blocks_each * block_bytes, pool.memory.size_bytes());
}

struct WriteCall {
  Pool pool;
  std::unique_ptr<Step> step;
  std::unique_ptr<KvWriter> writer;
};
struct AttentionCall {
  Pool pool;
  std::unique_ptr<Step> step;
  Buffer qkv, out, workspace;
  AttentionArgs args;
  ExecContext exec;
};

nlohmann::json kv_fields(const OpRig& rig, const OpSizes& s, KvFormatId kv) {
  return {{"config", s.config}, {"kv", kv_format_name(kv)}, {"act", dtype_name(rig.activation())},
          {"heads", s.heads},   {"kv_heads", s.kv_heads},   {"head_dim", s.head_dim}};
}

}  // namespace

MaybeCase rope_kv_write_case(const OpRig& rig, const OpSizes& s, KvFormatId kv, int64_t tokens) {
  if (!rig.ops().supports_kv(kv)) return std::unique_ptr<OpCase>();
  const bool rows = tokens <= kMostRows;
  const auto call = std::make_shared<WriteCall>();
  HEARTH_TRY_ASSIGN(call->pool, Pool::make(rig, s, kv, rows ? tokens : 1, rows ? kBlockTokens : tokens));
  const Pool& pool = call->pool;
  HEARTH_TRY_ASSIGN(call->step, Step::make(rig, rows ? tokens : 1, rows ? 1 : tokens, rows ? kBlockTokens : tokens,
                                           pool.blocks_each, pool.kv.layout.block_bytes()));
  const int64_t cols = (s.heads + 2 * s.kv_heads) * s.head_dim,
                set_bytes = dtype_bytes(rig.activation(), tokens * cols);
  const int64_t sets = rig.sets_for(set_bytes);
  HEARTH_TRY_ASSIGN(call->writer, KvWriter::make(rig, s, tokens, sets));
  HEARTH_TRY(call->writer->make_table(*call->step));
  auto one = std::make_unique<OpCase>();
  one->bench = "op.rope_kv_write";
  one->fields = kv_fields(rig, s, kv);
  one->fields["rows"] = tokens;
  one->fields["sequences"] = call->step->batch.num_sequences();
  one->format = kv_format_name(kv);
  one->shape = fmt::format("{} of {} token{}, {}/{} heads of {}", rows ? tokens : 1, rows ? 1 : tokens, rows ? "" : "s",
                           s.heads, s.kv_heads, s.head_dim);
  // Q is read and written, K and V are read and stored.
  one->bytes = static_cast<double>(set_bytes + dtype_bytes(rig.activation(), tokens * s.heads * s.head_dim) +
                                   tokens * pool.kv.layout.bytes_per_token() / pool.layers);
  one->sets = sets, one->set_bytes = set_bytes;
  one->run = [call](int64_t set) {
    return call->writer->write(*call->step, call->pool.kv, set % call->pool.layers, set);
  };
  return one;
}

MaybeCase attention_case(const OpRig& rig, const OpSizes& s, KvFormatId kv, const AttentionShape& shape) {
  if (!rig.ops().supports_kv(kv)) return std::unique_ptr<OpCase>();
  const DType act = rig.activation();
  const auto call = std::make_shared<AttentionCall>();
  HEARTH_TRY_ASSIGN(call->pool, Pool::make(rig, s, kv, shape.batch, shape.length));
  const Pool& pool = call->pool;
  HEARTH_TRY(fill(rig, s, pool, shape.length));
  HEARTH_TRY_ASSIGN(call->step, Step::make(rig, shape.batch, shape.decode ? 1 : shape.length, shape.length,
                                           pool.blocks_each, pool.kv.layout.block_bytes()));
  const int64_t tokens = call->step->batch.num_tokens(), q_cols = s.heads * s.head_dim;
  const int64_t qkv_cols = q_cols + 2 * s.kv_heads * s.head_dim;
  HEARTH_TRY_ASSIGN(call->qkv, rig.numbers(act, tokens * qkv_cols, 1));
  HEARTH_TRY_ASSIGN(call->out, rig.numbers(act, tokens * q_cols, 1));
  HEARTH_TRY_ASSIGN(call->workspace, rig.memory().allocate(rig.ops().attention_workspace_bytes(
                                         tokens, s.heads, s.head_dim, shape.length, rig.pool().size())));
  call->exec = rig.exec(call->workspace);
  call->exec.staged = call->step->staging.memory();
  call->args = {.q = ConstTensorView(call->qkv.data(), act, Shape{tokens, qkv_cols}).slice_cols(0, q_cols),
                .out = TensorView(call->out.data(), act, Shape{tokens, q_cols}),
                .heads = s.heads,
                .scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)),
                .kv = pool.kv,
                .batch = &call->step->batch};
  auto one = std::make_unique<OpCase>();
  one->bench = shape.decode ? "op.attention.decode" : "op.attention.prefill";
  one->fields = kv_fields(rig, s, kv);
  one->fields["batch"] = shape.batch;
  one->fields[shape.decode ? "context" : "length"] = shape.length;
  one->format = kv_format_name(kv);
  one->shape = fmt::format("{} x {}, {}/{} heads of {}", shape.batch, shape.length, s.heads, s.kv_heads, s.head_dim);
  one->bytes = static_cast<double>(pool.layer_bytes + 2 * call->args.out.size_bytes());
  const auto n = static_cast<double>(shape.length);
  one->flops = 4.0 * static_cast<double>(shape.batch * q_cols) * (shape.decode ? n : n * n / 2);
  one->sets = pool.layers, one->set_bytes = pool.layer_bytes;
  one->run = [call, op = rig.ops().attention](int64_t set) {
    AttentionArgs args = call->args;
    args.layer = set;
    return op(args, call->exec);
  };
  return one;
}

}  // namespace hearth
