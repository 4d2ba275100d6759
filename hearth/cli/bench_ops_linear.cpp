// SPDX-License-Identifier: Apache-2.0
// Linears of `hearth bench ops`.
#include "hearth/cli/bench_ops.h"
#include "hearth/kernels/linear/linear_bench_formats.h"
#include "hearth/model/block.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

std::string act_name(const WeightFormat& format, DType activation) {
  switch (format.act) {
    case ActFormat::kE4m3PerToken:
    case ActFormat::kE4m3Static: return "e4m3";
    case ActFormat::kI8PerGroup: return "int8planes";
    default: return std::string(dtype_name(activation));
  }
}

// The same weight `bytes` further on.
LinearWeight moved(LinearWeight weight, int64_t bytes) {
  for (ConstTensorView* view :
       {&weight.codes, &weight.scales, &weight.zeros, &weight.lines, &weight.line_scales, &weight.line_index})
    if (*view) view->data = static_cast<const std::byte*>(view->data) + bytes;
  return weight;
}

// A weight in its place at the start of `memory`, which the caller made for `sets` of them.
Result<LinearWeight> place(const OpRig& rig, const WeightFormat& format, int64_t n, int64_t k, const Buffer& memory) {
  const QuantizedMatrix matrix = bench_matrix(format, n, k);
  HEARTH_TRY_ASSIGN(const Buffer host, host_memory().allocate(quantized_weight_bytes(format, n, k, false)));
  const LinearWeight weight = place_quantized(matrix, host.data());
  HEARTH_TRY(rig.queue().copy_in(memory.data(), {host.data(), static_cast<size_t>(host.size_bytes())}));
  HEARTH_TRY(rig.queue().synchronize());
  return moved(weight, memory.data() - host.data());
}

}  // namespace

// What a case of it calls with.
struct LinearCall {
  const LinearOp* op = nullptr;
  const std::vector<LinearWeight>* weights = nullptr;
  Buffer x, x_scales, out, workspace;
  ConstTensorView x_view, x_scale, residual;
  TensorView out_view;
  ExecContext exec;

  Status run(int64_t set) {
    return op->run({.x = x_view,
                    .weight = &(*weights)[static_cast<size_t>(set)],
                    .residual = residual,
                    .out = out_view,
                    .x_scale = x_scale},
                   exec);
  }
};

std::vector<LinearShape> linear_shapes(const OpSizes& s) {
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  return {{.layer = "qkv", .n = q + 2 * kv, .k = s.hidden, .behind_rounding = true},
          {.layer = "o", .n = s.hidden, .k = q, .adds_residual = true},
          {.layer = "gate_up", .n = 2 * s.ffn, .k = s.hidden, .behind_rounding = true},
          {.layer = "down", .n = s.hidden, .k = s.ffn, .adds_residual = true, .behind_rounding = true},
          {.layer = "lm_head", .n = s.vocab, .k = s.hidden, .to_logits = true}};
}

Result<WeightFormat> find_op_format(const std::string& name) {
  std::string known = "f32, f16, bf16";
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBf16})
    if (name == dtype_name(dtype)) return WeightFormat::plain(dtype);
  for (const BenchFormat& one : bench_formats("")) {
    if (one.name == name) return one.format;
    known += ", " + one.name;
  }
  return invalid_argument("weight format '{}' is unknown; wanted one of {}", name, known);
}

Result<std::unique_ptr<LinearBench>> LinearBench::create(const OpRig& rig, const OpSizes& sizes,
                                                         const LinearShape& shape, const std::string& name) {
  HEARTH_TRY_ASSIGN(const WeightFormat format, find_op_format(name));
  std::unique_ptr<LinearBench> bench(new LinearBench(rig));
  bench->config_ = sizes.config, bench->format_name_ = name, bench->shape_ = shape;
  bench->op_ = rig.ops().find_linear(format, rig.activation());
  if (!bench->op_ || !format.validate(shape.n, shape.k)) return std::unique_ptr<LinearBench>();
  LinearWeight weight{.format = format, .n = shape.n, .k = shape.k};
  const int64_t stored = format.is_plain() ? (format.stored_bytes(shape.n, shape.k) + 63) / 64 * 64
                                           : quantized_weight_bytes(format, shape.n, shape.k, false);
  const int64_t sets = rig.sets_for(stored);
  if (format.is_plain()) {
    const DType dtype = format.code == WeightCode::kF32   ? DType::kF32
                        : format.code == WeightCode::kF16 ? DType::kF16
                                                          : DType::kBf16;
    HEARTH_TRY_ASSIGN(bench->memory_, rig.numbers(dtype, sets * stored * 8 / dtype_bits(dtype), 0.02f));
    weight.codes = ConstTensorView(bench->memory_.data(), dtype, Shape{shape.n, shape.k});
  } else {
    HEARTH_TRY_ASSIGN(bench->memory_, rig.memory().allocate(sets * stored));
    HEARTH_TRY_ASSIGN(weight, place(rig, format, shape.n, shape.k, bench->memory_));
    HEARTH_TRY(rig.repeat(bench->memory_.data(), stored, sets * stored));
  }
  for (int64_t set = 0; set < sets; ++set) bench->weights_.push_back(moved(weight, set * stored));
  const int64_t packed = bench->op_->pack ? bench->op_->packed_bytes(format, shape.n, shape.k) : 0;
  if (packed == 0) return bench;
  // As a model's load leaves them.
  HEARTH_TRY_ASSIGN(Buffer memory, rig.memory().allocate(sets * packed));
  for (int64_t set = 0; set < sets; ++set)
    HEARTH_TRY(bench->op_->pack(bench->weights_[static_cast<size_t>(set)], memory.data() + set * packed,
                                rig.queue().stream()));
  HEARTH_TRY(rig.queue().synchronize());
  bench->memory_ = std::move(memory);
  return bench;
}

Result<std::shared_ptr<LinearCall>> LinearBench::call(int64_t tokens) const {
  const DType act = rig_.activation(), out_type = shape_.to_logits ? DType::kF32 : act;
  const auto call = std::make_shared<LinearCall>();
  call->op = op_, call->weights = &weights_;
  const Linear alone{.parts = {weights_.front()}};
  const bool rounded = shape_.behind_rounding && rounded_input(rig_.ops(), alone, {op_}) == ActFormat::kE4m3PerToken;
  const DType x_type = rounded ? DType::kE4m3 : act;
  HEARTH_TRY_ASSIGN(call->x, rig_.numbers(x_type, tokens * shape_.k, rounded ? 80.0f : 1.0f));
  if (rounded) {
    HEARTH_TRY_ASSIGN(call->x_scales, rig_.numbers(DType::kF32, tokens, 0.01f));
    call->x_scale = ConstTensorView(call->x_scales.data(), DType::kF32, Shape{tokens});
  }
  HEARTH_TRY_ASSIGN(call->out, rig_.numbers(out_type, tokens * shape_.n, 1));
  HEARTH_TRY_ASSIGN(call->workspace,
                    rig_.memory().allocate(op_->workspace_bytes(tokens, shape_.n, shape_.k, rig_.pool().size())));
  call->x_view = ConstTensorView(call->x.data(), x_type, Shape{tokens, shape_.k});
  call->out_view = TensorView(call->out.data(), out_type, Shape{tokens, shape_.n});
  if (shape_.adds_residual) call->residual = call->out_view;
  call->exec = rig_.exec(call->workspace);
  return call;
}

MaybeCase LinearBench::make(int64_t tokens) const {
  const LinearWeight& weight = weights_.front();
  HEARTH_TRY_ASSIGN(const auto call, this->call(tokens));
  const int64_t stored = weight.format.stored_bytes(shape_.n, shape_.k);
  auto one = std::make_unique<OpCase>();
  one->bench = "op.linear";
  one->fields = {{"config", config_},
                 {"layer", shape_.layer},
                 {"N", shape_.n},
                 {"K", shape_.k},
                 {"M", tokens},
                 {"format", format_name_},
                 {"act", act_name(weight.format, rig_.activation())},
                 {"x", dtype_name(call->x_view.dtype)},
                 {"path", op_->name},
                 {"residual", shape_.adds_residual}};
  one->format = format_name_;
  one->shape = fmt::format("{} {} x {}, {} token{}", shape_.layer, shape_.n, shape_.k, tokens, tokens > 1 ? "s" : "");
  one->bytes = static_cast<double>(stored + call->x_view.size_bytes() +
                                   call->out_view.size_bytes() * (shape_.adds_residual ? 2 : 1));
  one->flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(shape_.n) * static_cast<double>(shape_.k);
  one->sets = std::ssize(weights_);
  one->set_bytes = stored;
  one->run = [call](int64_t set) { return call->run(set); };
  return one;
}

Result<std::unique_ptr<FfnBench>> FfnBench::create(const OpRig& rig, const OpSizes& sizes, const std::string& format) {
  std::unique_ptr<FfnBench> bench(new FfnBench(rig, sizes, format));
  for (LinearShape& shape : linear_shapes(sizes)) {
    const bool up = shape.layer == "gate_up";
    if (!up && shape.layer != "down") continue;
    if (up) shape.behind_rounding = false;
    HEARTH_TRY_ASSIGN((up ? bench->gate_up_ : bench->down_), LinearBench::create(rig, sizes, shape, format));
  }
  if (!bench->gate_up_ || !bench->down_) bench.reset();
  return bench;
}

MaybeCase FfnBench::make(int64_t tokens) const {
  HEARTH_TRY_ASSIGN(const auto up, gate_up_->call(tokens));
  HEARTH_TRY_ASSIGN(const auto down, down_->call(tokens));
  const auto view = [](const ConstTensorView& of) {
    return TensorView(const_cast<void*>(of.data), of.dtype, of.shape);  // what silu_mul writes is down's
  };
  SiluMulArgs silu{.gate_up = up->out_view};
  if (down->x_scale)
    silu.rounded = {.codes = view(down->x_view), .scales = view(down->x_scale), .static_scale = {}};
  else
    silu.out = view(down->x_view);
  auto one = std::make_unique<OpCase>();
  one->bench = "op.ffn";
  one->fields = {{"config", sizes_.config}, {"hidden", sizes_.hidden},
                 {"ffn", sizes_.ffn},       {"M", tokens},
                 {"format", format_},       {"act", dtype_name(rig_.activation())}};
  one->format = format_;
  one->shape =
      fmt::format("{} x {} x {}, {} token{}", sizes_.hidden, sizes_.ffn, sizes_.hidden, tokens, tokens > 1 ? "s" : "");
  const int64_t gate_up_bytes = gate_up_->stored_bytes(), down_bytes = down_->stored_bytes();
  one->set_bytes = gate_up_bytes + down_bytes;
  one->bytes = static_cast<double>(one->set_bytes + up->x_view.size_bytes() + 2 * down->out_view.size_bytes());
  one->flops = 6.0 * static_cast<double>(tokens) * static_cast<double>(sizes_.hidden * sizes_.ffn);
  one->sets = std::max(std::ssize(*up->weights), std::ssize(*down->weights));
  one->run = [up, down, silu, op = rig_.ops().silu_mul](int64_t set) -> Status {
    HEARTH_TRY(up->run(set % std::ssize(*up->weights)));
    HEARTH_TRY(op(silu, up->exec));
    return down->run(set % std::ssize(*down->weights));
  };
  return one;
}

}  // namespace hearth
