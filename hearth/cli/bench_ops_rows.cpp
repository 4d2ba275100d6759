// SPDX-License-Identifier: Apache-2.0
// The ops of `hearth bench ops` that go from row to row: embedding, RMSNorm, SiLU, sampling.
#include "hearth/base/random.h"
#include "hearth/cli/bench_ops.h"

namespace hearth {
namespace {

std::unique_ptr<OpCase> row_case(const OpRig& rig, const OpSizes& sizes, std::string bench, int64_t rows,
                                 double bytes) {
  auto one = std::make_unique<OpCase>();
  one->bench = std::move(bench);
  one->fields = {{"config", sizes.config}, {"rows", rows}, {"act", dtype_name(rig.activation())}};
  one->format = dtype_name(rig.activation());
  one->bytes = bytes;
  return one;
}

// Random ids in staged memory where the ops want that.
struct Tokens {
  std::vector<int32_t> ids;
  StepStaging staging;
  StepBatch batch;

  Status stage(const OpRig& rig, int64_t count, int64_t vocab) {
    Random random(9);
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(vocab)));
    batch.tokens = ids, batch.positions = ids;
    if (rig.memory().is_host()) return {};
    HEARTH_TRY_ASSIGN(staging, StepStaging::create(rig.memory(), {.tokens = count}));
    HEARTH_TRY_ASSIGN(batch, staging.stage(batch, rig.queue()));
    return rig.queue().synchronize();
  }
};

// Inputs and outputs of `sets` calls, and ids.
struct RowCall {
  Buffer in, out, sums, scales, weight, workspace;
  Tokens tokens;
  ExecContext exec;
};

std::shared_ptr<RowCall> row_call(const OpRig& rig) {
  auto call = std::make_shared<RowCall>();
  call->exec = rig.exec(call->workspace);
  return call;
}

// E4M3 in place of the output.
RoundedRows rounded_rows(const RowCall& call, int64_t offset_bytes, const Shape& shape) {
  return {.codes = TensorView(call.out.data() + offset_bytes, DType::kE4m3, shape),
          .scales = TensorView(call.scales.data(), DType::kF32, Shape{shape[0]}),
          .static_scale = {}};
}
void set_rounded(OpCase& one) {
  one.fields["out"] = "e4m3";
  one.format += " to e4m3";
}

// Samples of one set of logits after the other, on the host or where they lie.
struct SampleCall {
  Buffer logits, workspace;
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  DeviceSampler sampler;
  ExecContext exec;
};

}  // namespace

MaybeCase embedding_case(const OpRig& rig, const OpSizes& s, int64_t tokens) {
  const DType act = rig.activation();
  const int64_t set_bytes = dtype_bytes(act, tokens * s.hidden), sets = rig.sets_for(set_bytes);
  const auto call = row_call(rig);
  // bf16, as checkpoints have it.
  HEARTH_TRY_ASSIGN(call->weight, rig.numbers(DType::kBf16, s.vocab * s.hidden, 1));
  HEARTH_TRY_ASSIGN(call->out, rig.numbers(act, tokens * s.hidden, 1));
  HEARTH_TRY(call->tokens.stage(rig, sets * tokens, s.vocab));
  call->exec.staged = call->tokens.staging.memory();
  auto one = row_case(rig, s, "op.embedding", tokens,
                      static_cast<double>(set_bytes + dtype_bytes(DType::kBf16, tokens * s.hidden)));
  one->fields["hidden"] = s.hidden;
  one->fields["vocab"] = s.vocab;
  one->shape = fmt::format("{} of {} rows of {}", tokens, s.vocab, s.hidden);
  one->sets = sets, one->set_bytes = set_bytes;
  const ConstTensorView table(call->weight.data(), DType::kBf16, Shape{s.vocab, s.hidden});
  const TensorView out(call->out.data(), act, Shape{tokens, s.hidden});
  one->run = [call, table, out, tokens, op = rig.ops().embedding](int64_t set) {
    const auto ids = call->tokens.batch.tokens.subspan(static_cast<size_t>(set * tokens), static_cast<size_t>(tokens));
    return op({.tokens = ids, .table = table, .out = out}, call->exec);
  };
  return one;
}

namespace {

struct NormKind {
  bool rounded, residual;
};
MaybeCase norm_case(const OpRig& rig, const OpSizes& s, int64_t tokens, NormKind kind) {
  const bool rounded = kind.rounded, residual = kind.residual;
  if (rounded && !rig.ops().rounds_outputs) return std::unique_ptr<OpCase>();
  const DType act = rig.activation();
  const int64_t tensor_bytes = dtype_bytes(act, tokens * s.hidden), set_bytes = (residual ? 3 : 2) * tensor_bytes;
  const int64_t sets = rig.sets_for(set_bytes);
  const auto call = row_call(rig);
  HEARTH_TRY_ASSIGN(call->in, rig.numbers(act, sets * tokens * s.hidden, 1));
  if (residual) {
    HEARTH_TRY_ASSIGN(call->sums, rig.numbers(act, sets * tokens * s.hidden, 1));
  }
  HEARTH_TRY_ASSIGN(call->out, rig.numbers(act, sets * tokens * s.hidden, 1));
  HEARTH_TRY_ASSIGN(call->weight, rig.numbers(DType::kF32, s.hidden, 1));
  HEARTH_TRY_ASSIGN(call->scales, rig.numbers(DType::kF32, tokens, 1));
  auto one = row_case(
      rig, s, "op.rmsnorm", tokens,
      static_cast<double>((residual ? 3 : 1) * tensor_bytes + (rounded ? tokens * (s.hidden + 4) : tensor_bytes)));
  if (rounded) set_rounded(*one);
  one->fields["hidden"] = s.hidden;
  one->fields["residual"] = residual;
  one->shape = fmt::format("{} x {}", tokens, s.hidden);
  one->sets = sets, one->set_bytes = set_bytes;
  const Shape shape{tokens, s.hidden};
  const ConstTensorView weight(call->weight.data(), DType::kF32, Shape{s.hidden});
  one->run = [=, op = rig.ops().rmsnorm](int64_t set) {
    return op({.x = ConstTensorView(call->in.data() + set * tensor_bytes, act, shape),
               .residual = residual ? TensorView(call->sums.data() + set * tensor_bytes, act, shape) : TensorView(),
               .weight = weight,
               .out = rounded ? TensorView() : TensorView(call->out.data() + set * tensor_bytes, act, shape),
               .rounded = rounded ? rounded_rows(*call, set * tensor_bytes, shape) : RoundedRows()},
              call->exec);
  };
  return one;
}

}  // namespace

MaybeCase rmsnorm_case(const OpRig& rig, const OpSizes& s, int64_t tokens, bool rounded) {
  return norm_case(rig, s, tokens, {.rounded = rounded, .residual = false});
}

MaybeCase rmsnorm_residual_case(const OpRig& rig, const OpSizes& s, int64_t tokens) {
  return norm_case(rig, s, tokens, {.rounded = false, .residual = true});
}

MaybeCase silu_mul_case(const OpRig& rig, const OpSizes& s, int64_t tokens, bool rounded) {
  if (rounded && !rig.ops().rounds_outputs) return std::unique_ptr<OpCase>();
  const DType act = rig.activation();
  const int64_t out_bytes = dtype_bytes(act, tokens * s.ffn), sets = rig.sets_for(3 * out_bytes);
  const auto call = row_call(rig);
  HEARTH_TRY_ASSIGN(call->in, rig.numbers(act, sets * tokens * 2 * s.ffn, 1));
  HEARTH_TRY_ASSIGN(call->out, rig.numbers(act, sets * tokens * s.ffn, 1));
  HEARTH_TRY_ASSIGN(call->scales, rig.numbers(DType::kF32, tokens, 1));
  auto one = row_case(rig, s, "op.silu_mul", tokens,
                      static_cast<double>(2 * out_bytes + (rounded ? tokens * (s.ffn + 4) : out_bytes)));
  if (rounded) set_rounded(*one);
  one->fields["ffn"] = s.ffn;
  one->shape = fmt::format("{} x {}", tokens, s.ffn);
  one->sets = sets, one->set_bytes = 3 * out_bytes;
  one->run = [=, ffn = s.ffn, op = rig.ops().silu_mul](int64_t set) {
    return op({.gate_up = ConstTensorView(call->in.data() + set * 2 * out_bytes, act, Shape{tokens, 2 * ffn}),
               .out = rounded ? TensorView() : TensorView(call->out.data() + set * out_bytes, act, Shape{tokens, ffn}),
               .rounded = rounded ? rounded_rows(*call, set * out_bytes, Shape{tokens, ffn}) : RoundedRows()},
              call->exec);
  };
  return one;
}

MaybeCase rope_table_case(const OpRig& rig, const OpSizes& s, int64_t tokens) {
  const auto call = row_call(rig);
  HEARTH_TRY_ASSIGN(call->weight, rig.numbers(DType::kF32, s.head_dim / 2, 0.01f));
  HEARTH_TRY_ASSIGN(call->out, rig.numbers(DType::kF32, tokens * s.head_dim, 1));
  HEARTH_TRY(call->tokens.stage(rig, tokens, 4096));
  call->exec.staged = call->tokens.staging.memory();
  auto one =
      row_case(rig, s, "op.rope_table", tokens, static_cast<double>(dtype_bytes(DType::kF32, tokens * s.head_dim)));
  one->fields["head_dim"] = s.head_dim;
  one->format = "f32";
  one->shape = fmt::format("{} x {}", tokens, s.head_dim);
  one->set_bytes = static_cast<int64_t>(one->bytes);
  const RopeTableArgs args{.positions = call->tokens.batch.positions,
                           .inv_freq = ConstTensorView(call->weight.data(), DType::kF32, Shape{s.head_dim / 2}),
                           .cos_sin = TensorView(call->out.data(), DType::kF32, Shape{tokens, s.head_dim})};
  one->run = [call, args, op = rig.ops().rope_table](int64_t) { return op(args, call->exec); };
  return one;
}

MaybeCase sample_case(const OpRig& rig, const OpSizes& s, int64_t rows, bool greedy) {
  const OpTable& ops = rig.ops();
  const bool packed = ops.sample_packed && s.vocab <= kMaxPackedVocab;
  if (!packed && !ops.sample) return std::unique_ptr<OpCase>();
  const int64_t set_bytes = dtype_bytes(DType::kF32, rows * s.vocab);
  const auto call = std::make_shared<SampleCall>();
  auto one = std::make_unique<OpCase>();
  one->bench = "op.sample";
  one->fields = {{"config", s.config}, {"rows", rows},        {"vocab", s.vocab},        {"act", "f32"},
                 {"greedy", greedy},   {"on_device", packed}, {"top_k", greedy ? 0 : 50}};
  one->format = packed ? "f32" : "f32, on the host";
  one->shape = fmt::format("{} x {}, {}", rows, s.vocab, greedy ? "greedy" : "top-k 50, top-p 0.9");
  one->bytes = static_cast<double>(set_bytes), one->set_bytes = set_bytes;
  one->on_host = !packed;
  one->sets = rig.sets_for(set_bytes);
  for (int64_t i = 0; i < rows; ++i) {
    SampleRow row{.position = i, .top_logprobs = kNoLogprobs};
    row.params.temperature = greedy ? 0.0f : 0.8f;
    if (!greedy) row.params.top_k = 50, row.params.top_p = 0.9f;
    row.params.seed = static_cast<uint64_t>(i);
    call->rows.push_back(row);
  }
  call->results.resize(static_cast<size_t>(rows));
  HEARTH_TRY_ASSIGN(call->logits, rig.numbers(DType::kF32, one->sets * rows * s.vocab, 3));
  if (one->on_host && !rig.memory().is_host()) {
    HEARTH_TRY_ASSIGN(Buffer here, host_memory().allocate(call->logits.size_bytes()));
    HEARTH_TRY(rig.queue().copy_out({here.data(), static_cast<size_t>(here.size_bytes())}, call->logits.data()));
    HEARTH_TRY(rig.queue().synchronize());
    call->logits = std::move(here);
  }
  const auto view = [call, set_bytes, rows, vocab = s.vocab](int64_t set) {
    return ConstTensorView(call->logits.data() + set * set_bytes, DType::kF32, Shape{rows, vocab});
  };
  if (!packed) {
    HEARTH_TRY_ASSIGN(call->workspace,
                      host_memory().allocate(
                          ops.sample_workspace_bytes ? ops.sample_workspace_bytes(s.vocab, rig.pool().size()) : 0));
    call->exec = rig.exec(call->workspace);
    one->run = [call, view, op = ops.sample](int64_t set) {
      return op({.logits = view(set), .rows = call->rows, .results = call->results}, call->exec);
    };
    return one;
  }
  call->exec = rig.exec(call->workspace);
  HEARTH_TRY_ASSIGN(call->sampler, DeviceSampler::create(rig.memory(), ops.sample_packed,
                                                         {.rows = rows, .vocab = s.vocab, .list_words = 64}));
  // Packs the rows, which the op then finds on the device.
  HEARTH_TRY(
      call->sampler.sample({.logits = view(0), .rows = call->rows, .results = call->results}, rig.queue(), call->exec));
  one->run = [call, view, op = ops.sample_packed](int64_t set) {
    return op(call->sampler.packed(view(set)), call->exec);
  };
  return one;
}

}  // namespace hearth
