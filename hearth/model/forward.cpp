// SPDX-License-Identifier: Apache-2.0
// A step: embedding, every block (block.h), the wanted rows' logits.
#include <algorithm>

#include "hearth/model/step_work.h"

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

int64_t sample_workspace_bytes(const Model& model, int threads) {
  const OpTable& ops = model.ops();
  return ops.sample_workspace_bytes ? ops.sample_workspace_bytes(model.config().vocab_size, threads) : 0;
}

// The largest scratch that any op of a step asks for.
int64_t step_workspace_bytes(const Model& model, const StepLimits& limits, int threads) {
  const OpTable& ops = model.ops();
  int64_t bytes = ops.attention_workspace_bytes(limits.max_tokens, model.local_heads(), model.config().head_dim,
                                                limits.max_context, threads);
  for (int64_t i = 0; i < model.config().layers; ++i)
    bytes = std::max(bytes, model.layer_ops(i).workspace_bytes(model.weights().layers[static_cast<size_t>(i)],
                                                               limits.max_tokens, threads));
  bytes = std::max(bytes, workspace_bytes(model.weights().lm_head, model.lm_head_op(), limits.max_logit_rows, threads));
  // Sampling runs between steps, in host memory: on the host on the same scratch.
  if (ops.memory().is_host()) bytes = std::max(bytes, sample_workspace_bytes(model, threads));
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

Status StepWork::run(Comm& comm) {
  const ModelConfig& c = model->config();
  const ModelWeights& weights = model->weights();
  const OpTable& ops = this->ops();
  const DType act = model->activation();
  const int64_t tokens = batch.num_tokens();
  const TensorView hidden(block.hidden, act, {tokens, c.hidden_size});
  HEARTH_TRY(ops.embedding(
      {.tokens = batch.tokens, .table = weights.embedding, .out = hidden, .sampled = batch.sampled}, exec));
  HEARTH_TRY(ops.rope_table({.positions = batch.positions,
                             .inv_freq = weights.inv_freq,
                             .scale = static_cast<float>(c.rope_scaling.attention_factor),
                             .cos_sin = TensorView(block.cos_sin, DType::kF32, {tokens, c.head_dim})},
                            exec));
  for (int64_t i = 0; i < c.layers; ++i)
    HEARTH_TRY(forward_block({.config = &c,
                              .ops = &ops,
                              .weights = &weights.layers[static_cast<size_t>(i)],
                              .linears = &layer_ops(i),
                              .activation = act,
                              .shard = model->shard(),
                              .layer = i,
                              .window = c.windows[static_cast<size_t>(i)],
                              .batch = &batch,
                              .kv = kv,
                              .buffers = block},
                             comm, exec));
  return batch.logit_rows.empty() ? Status() : write_logits();
}

// The wanted rows of the residual stream through the last norm and lm_head.
Status StepWork::write_logits() {
  const ModelConfig& c = model->config();
  const ModelWeights& weights = model->weights();
  const OpTable& ops = this->ops();
  const DType act = model->activation();
  const int64_t rows = static_cast<int64_t>(batch.logit_rows.size());
  const TensorView hidden(block.hidden, act, {batch.num_tokens(), c.hidden_size});
  const TensorView last(block.normed, act, {rows, c.hidden_size});
  // The embedding op is a gather of rows.
  HEARTH_TRY(ops.embedding({.tokens = batch.logit_rows, .table = hidden, .out = last, .sampled = {}}, exec));
  const float eps = static_cast<float>(c.rms_norm_eps);
  HEARTH_TRY(ops.rmsnorm({.x = last, .weight = weights.final_norm, .out = last, .eps = eps}, exec));
  return run_linear(weights.lm_head, lm_head_op(), last, {}, TensorView(logits, DType::kF32, {rows, c.vocab_size}),
                    exec);
}

Result<ForwardBuffers> ForwardBuffers::create(const Model& model, const StepLimits& limits, ThreadPool& pool) {
  const ModelConfig& c = model.config();
  ForwardBuffers out;
  out.limits_ = limits;
  if (out.limits_.max_context == 0) out.limits_.max_context = c.max_positions;
  if (limits.max_tokens < 1 || limits.max_logit_rows < 0 || limits.max_context < 0)
    return invalid_argument("step limits of {} tokens, {} logit rows, context {}: wanted at least 1, 0 and 0",
                            limits.max_tokens, limits.max_logit_rows, limits.max_context);
  const int64_t tokens = limits.max_tokens, gathered = std::max(tokens, limits.max_logit_rows);
  const int64_t scratch = step_workspace_bytes(model, out.limits_, pool.size());
  const int64_t qkv_cols = (model.local_heads() + 2 * model.local_kv_heads()) * c.head_dim;
  const int64_t ffn = c.intermediate_size / model.shard().size;
  std::byte* workspace = nullptr;
  const auto lay_out = [&](Layout layout) {
    const auto take = [&](int64_t rows, int64_t cols, DType dtype) {
      return layout.take(dtype_bytes(dtype, rows * cols));
    };
    const DType act = model.activation();
    out.block_.hidden = take(tokens, c.hidden_size, act);
    out.block_.normed = take(gathered, c.hidden_size, act);
    out.block_.qkv = take(tokens, qkv_cols, act);
    out.block_.attention = take(tokens, model.local_heads() * c.head_dim, act);
    out.block_.gate_up = take(tokens, 2 * ffn, act);
    out.block_.ffn = take(tokens, ffn, act);
    out.block_.cos_sin = take(tokens, c.head_dim, DType::kF32);
    out.logits_ = take(limits.max_logit_rows, c.vocab_size, DType::kF32);
    workspace = static_cast<std::byte*>(layout.take(scratch));
    return layout.used();
  };
  const int64_t total = lay_out(Layout(nullptr));
  const Memory& memory = model.ops().memory();
  HEARTH_TRY_ASSIGN(out.memory_, memory.allocate(total).with_context("activations"));
  lay_out(Layout(out.memory_.data()));
  out.step_exec_ = {.pool = &pool, .workspace = {workspace, static_cast<size_t>(scratch)}};
  out.exec_ = out.step_exec_;
  if (!memory.is_host()) {
    HEARTH_TRY(out.plan_copies(model, pool));
  }
  return out;
}

Status ForwardBuffers::plan_copies(const Model& model, ThreadPool& pool) {
  const Memory& memory = model.ops().memory();
  const int64_t blocks = (limits_.max_context + 15) / 16;
  HEARTH_TRY_ASSIGN(queue_, memory.create_queue());
  HEARTH_TRY_ASSIGN(staging_, StepStaging::create(
                                  memory, {.tokens = limits_.max_tokens,
                                           .sequences = limits_.max_tokens,
                                           .logit_rows = limits_.max_logit_rows,
                                           .block_entries = limits_.max_block_entries ? limits_.max_block_entries
                                                                                      : limits_.max_tokens * blocks}));
  HEARTH_TRY_ASSIGN(
      host_logits_,
      memory.allocate_staging(dtype_bytes(DType::kF32, limits_.max_logit_rows * model.config().vocab_size))
          .with_context("logits"));
  HEARTH_TRY_ASSIGN(host_workspace_,
                    host_memory().allocate(sample_workspace_bytes(model, pool.size())).with_context("sampling"));
  if (const SamplePackedOp sample = model.ops().sample_packed;
      limits_.samples && sample && model.config().vocab_size <= kMaxPackedVocab) {
    constexpr int64_t kAdjustedRows = 64, kListWords = int64_t{1} << 20;  // rows of logits, and 4 MiB of their lists
    HEARTH_TRY_ASSIGN(sampler_, DeviceSampler::create(memory, sample,
                                                      {.rows = limits_.max_logit_rows,
                                                       .vocab = model.config().vocab_size,
                                                       .adjusted_rows = std::min(limits_.max_logit_rows, kAdjustedRows),
                                                       .list_words = std::max(kListWords, 4 * limits_.max_context),
                                                       .slots = limits_.sample_slots,
                                                       .context = limits_.max_context}));
  }
  for (UnderWay& turn : turns_) {
    HEARTH_TRY_ASSIGN(turn.mark, queue_->create_mark());
  }
  step_exec_.stream = queue_->stream();
  step_exec_.staged = staging_.memory();
  exec_.workspace = {host_workspace_.data(), static_cast<size_t>(host_workspace_.size_bytes())};
  return {};
}

Result<ConstTensorView> ForwardBuffers::logits_on_host(ConstTensorView logits) {
  if (!queue_) return logits;
  const auto bytes = static_cast<size_t>(logits.size_bytes());
  if (bytes > 0) HEARTH_TRY(queue_->copy_out({host_logits_.data(), bytes}, static_cast<const std::byte*>(logits.data)));
  // Also for the step's arrays: they stay until all of it is done.
  HEARTH_TRY(queue_->synchronize());
  return ConstTensorView(host_logits_.data(), DType::kF32, logits.shape);
}

Status ForwardBuffers::run_on_device(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm) {
  if (DecodeSteps::Entry* const decode = decode_.find(step, kv)) {
    // What the embedding op looks at in every other step.
    for (size_t t = 0; t < step.tokens.size(); ++t)
      if (step.tokens[t] < -step.sampled.rows || step.tokens[t] >= model.config().vocab_size)
        return invalid_argument("step: token {} has id {}, wanted 0 to {}", t, step.tokens[t],
                                model.config().vocab_size - 1);
    HEARTH_TRY(staging_.stage_padded(step, decode->shape, *queue_));
    return decode->recording->run();
  }
  HEARTH_TRY_ASSIGN(const StepBatch staged, staging_.stage(step, *queue_));
  return StepWork{&model, staged, kv, step_exec_, block_, logits_}.run(comm);
}

Status ForwardBuffers::record_decode(const Model& model, const KvView& kv, std::span<const int64_t> batches) {
  if (!queue_ || kv.dummy_block < 0 || model.shard().size != 1) return {};
  decode_.set_pool(kv);
  const std::vector<int64_t> contexts = decode_contexts(limits_.max_context);
  SingleRank comm;
  // The pool's owner may be computing with it.
  ThreadPool one(1);
  ExecContext first_exec = step_exec_;
  first_exec.pool = &one;
  for (const int64_t batch : batches) {
    for (size_t i = contexts.size(); i-- > 0;) {
      const PaddedShape shape{.sequences = batch,
                              .max_context = contexts[i],
                              .block_stride = (contexts[i] + kv.layout.block_tokens - 1) / kv.layout.block_tokens,
                              .dummy_block = kv.dummy_block};
      StepBatch nothing;
      nothing.sampled = sampler_.ids();
      HEARTH_TRY_ASSIGN(const StepBatch staged, staging_.stage_padded(nothing, shape, *queue_));
      StepWork work{&model, staged, kv, step_exec_, block_, logits_};
      if (i + 1 == contexts.size()) HEARTH_TRY((StepWork{&model, staged, kv, first_exec, block_, logits_}.run(comm)));
      HEARTH_TRY(queue_->synchronize());
      Result<std::unique_ptr<Recording>> recording = queue_->record([work]() mutable {
        SingleRank alone;
        return work.run(alone);
      });
      if (!recording && recording.error().code == ErrorCode::kUnsupported) return {};
      if (!recording)
        return std::move(recording).error().with_context(
            fmt::format("recording a decode step of {} sequences, context {}", batch, contexts[i]));
      decode_.add({shape, *std::move(recording)});
    }
  }
  return {};
}

Result<ConstTensorView> ForwardBuffers::run(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm) {
  HEARTH_TRY(check_batch(step, kv, model, limits_, comm));
  if (queue_) {
    HEARTH_TRY(run_on_device(model, step, kv, comm));
  } else {
    HEARTH_TRY((StepWork{&model, step, kv, step_exec_, block_, logits_}.run(comm)));
  }
  return ConstTensorView(logits_, DType::kF32,
                         {static_cast<int64_t>(step.logit_rows.size()), model.config().vocab_size});
}

Result<ConstTensorView> forward(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm,
                                ForwardBuffers& buffers) {
  HEARTH_TRY_ASSIGN(const ConstTensorView logits, buffers.run(model, step, kv, comm));
  return buffers.logits_on_host(logits);
}

bool ForwardBuffers::can_follow(std::span<const SampleRow> rows) const {
  if (under_way() == 0) return true;
  const UnderWay& last = turns_[static_cast<size_t>((started_ - 1) % kMostUnderWay)];
  return !last.sampled && sampler_.takes_at_once(rows) && std::ranges::none_of(rows, reads_history);
}

Status ForwardBuffers::start(const Model& model, const StepBatch& batch, const KvView& kv, Comm& comm,
                             std::span<const SampleRow> rows, std::span<SampleResult> results) {
  HEARTH_CHECK(under_way() < kMostUnderWay && can_follow(rows), "a step behind {} that have not finished", under_way());
  StepBatch step = batch;
  step.sampled = {};
  if (under_way() > 0) step.sampled = sampler_.ids();
  HEARTH_TRY_ASSIGN(const ConstTensorView logits, run(model, step, kv, comm));
  UnderWay& turn = turns_[static_cast<size_t>(started_ % kMostUnderWay)];
  const SampleArgs sampling{.logits = logits, .rows = rows, .results = results};
  turn.sampled = !sampler_.takes_at_once(rows);
  if (!turn.sampled) {
    HEARTH_TRY(sampler_.begin(sampling, *queue_, step_exec_));
    HEARTH_TRY(turn.mark->set());
  } else if (sampler_.takes(rows)) {
    turn.status = sampler_.sample(sampling, *queue_, step_exec_);
    // The step's arrays stay until all of it is done, whatever became of the rows.
    HEARTH_TRY(queue_->synchronize());
  } else {
    HEARTH_TRY_ASSIGN(const ConstTensorView on_host, logits_on_host(logits));
    turn.status = {};
    if (!rows.empty()) turn.status = model.ops().sample({.logits = on_host, .rows = rows, .results = results}, exec());
  }
  ++started_;
  return {};
}

Result<bool> ForwardBuffers::is_done() {
  HEARTH_CHECK(under_way() > 0, "no step is under way");
  UnderWay& turn = turns_[static_cast<size_t>(finished_ % kMostUnderWay)];
  if (turn.sampled) return true;
  return turn.mark->reached();
}

Status ForwardBuffers::finish() {
  HEARTH_CHECK(under_way() > 0, "no step is under way");
  UnderWay& turn = turns_[static_cast<size_t>(finished_++ % kMostUnderWay)];
  if (turn.sampled) return std::move(turn.status);
  if (Status waited = turn.mark->wait(); !waited) {
    sampler_.drop();
    return waited;
  }
  return sampler_.end();
}

Status forward_and_sample(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm,
                          ForwardBuffers& buffers, std::span<const SampleRow> rows, std::span<SampleResult> results) {
  HEARTH_TRY(buffers.start(model, step, kv, comm, rows, results));
  return buffers.finish();
}

}  // namespace hearth
