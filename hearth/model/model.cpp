// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/model.h"

#include <algorithm>

#include "hearth/model/architecture.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
Status Model::bind_ops() {
  const OpTable& ops = *ops_;
  const bool complete = ops.embedding && ops.rmsnorm && ops.rope_table && ops.rope_kv_write && ops.attention &&
                        ops.attention_workspace_bytes && ops.silu_mul && ops.find_linear && ops.supports_kv;
  if (!complete) return unsupported("the {} backend lacks an op of the transformer block", ops.backend);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    HEARTH_TRY_ASSIGN(BlockOps found, BlockOps::find(ops, weights_.layers[i], activation_, static_cast<int64_t>(i)));
    layer_ops_.push_back(std::move(found));
  }
  HEARTH_TRY_ASSIGN(lm_head_op_, find_linear_ops(ops, weights_.lm_head, activation_, "lm_head"));
  return {};
}

Status Model::pack_weights() {
  // By way of a copy: the largest weight's.
  struct Packing {
    LinearWeight* weight;
    const LinearOp* op;
    int64_t bytes;
  };
  std::vector<Packing> packings;
  const auto add = [&](Linear& linear, const LinearOps& found) {
    for (size_t i = 0; i < found.size(); ++i) {
      LinearWeight& w = linear.parts[i];
      if (found[i]->pack && found[i]->packed_bytes(w.format, w.n, w.k) > 0)
        packings.push_back({&w, found[i], quantized_weight_bytes(w.format, w.n, w.k, static_cast<bool>(w.k_order))});
    }
  };
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    LayerWeights& layer = weights_.layers[i];
    DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    const BlockOps& found = layer_ops_[i];
    add(layer.qkv, found.qkv), add(layer.o, found.o), add(ffn.gate_up, found.gate_up), add(ffn.down, found.down);
  }
  add(weights_.lm_head, lm_head_op_);
  int64_t most = 0;
  for (const Packing& packing : packings) most = std::max(most, packing.bytes);
  if (most == 0) return {};
  HEARTH_TRY_ASSIGN(const Buffer scratch, ops_->memory().allocate(most).with_context("weights"));
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, ops_->memory().create_queue());
  for (const Packing& packing : packings) {
    // The parts lie one behind the other, codes first (quantized_weight.h).
    auto* const place = static_cast<std::byte*>(const_cast<void*>(packing.weight->codes.data));
    LinearWeight packed = *packing.weight;
    for (ConstTensorView* view : {&packed.codes, &packed.scales, &packed.zeros, &packed.lines, &packed.line_scales,
                                  &packed.line_index, &packed.k_order, &packed.act_scale})
      if (*view) view->data = scratch.data() + (static_cast<const std::byte*>(view->data) - place);
    HEARTH_TRY(queue->copy_within(scratch.data(), place, packing.bytes));
    HEARTH_TRY(packing.op->pack(packed, place, queue->stream()));
    if (packed.units) *packing.weight = packed;
  }
  return queue->synchronize();
}

Result<std::shared_ptr<const Model>> Model::bind(const ModelConfig& config, WeightSource& source, const OpTable& ops,
                                                 const ModelOptions& options, std::optional<KvFormatId> kv_format,
                                                 ThreadPool& pool) {
  if (options.activation != DType::kF32 && options.activation != DType::kBf16)
    return invalid_argument("activations of type {}; wanted f32 or bf16", dtype_name(options.activation));
  std::shared_ptr<Model> model(new Model);
  model->config_ = config;
  model->ops_ = &ops;
  model->activation_ = options.activation;
  model->kv_format_ = kv_format;
  model->shard_ = options.shard;
  // Before the weights, which take their time.
  if (ops.prepare) HEARTH_TRY(ops.prepare());
  const auto packed_bytes = [&](const WeightFormat& format, int64_t n, int64_t k) -> int64_t {
    const LinearOp* const op = ops.find_linear ? ops.find_linear(format, options.activation) : nullptr;
    return op && op->packed_bytes ? op->packed_bytes(format, n, k) : 0;
  };
  HEARTH_TRY_ASSIGN(model->weights_, load_weights(source, config,
                                                  {.activation = options.activation,
                                                   .shard = options.shard,
                                                   .memory = &ops.memory(),
                                                   .progress = options.progress,
                                                   .stop = options.stop,
                                                   .packed_bytes = packed_bytes},
                                                  pool));
  HEARTH_TRY(model->bind_ops());
  HEARTH_TRY(model->pack_weights());
  return std::shared_ptr<const Model>(std::move(model));
}

Result<std::shared_ptr<const Model>> Model::load(const Checkpoint& checkpoint, const OpTable& ops,
                                                 const ModelOptions& options, ThreadPool& pool) {
  const std::string where = checkpoint.dir().string();
  HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(checkpoint.config()).with_context(where));
  HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse(checkpoint));
  CheckpointSource source(checkpoint, quantization);
  HEARTH_TRY_ASSIGN(auto model, bind(config, source, ops, options, quantization.kv_format(), pool).with_context(where));
  HEARTH_TRY(source.check_all_used().with_context(where));
  return model;
}

Result<std::shared_ptr<const Model>> Model::dummy(const ModelConfig& config, const OpTable& ops,
                                                  const ModelOptions& options, DType weight_dtype, uint64_t seed,
                                                  ThreadPool& pool, const Quantization* quantization) {
  DummySource source(config, weight_dtype, seed, quantization);
  return bind(config, source, ops, options, quantization ? quantization->kv_format() : std::nullopt, pool);
}

}  // namespace hearth
