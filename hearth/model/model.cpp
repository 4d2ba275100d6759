// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/model.h"

#include "hearth/model/architecture.h"

namespace hearth {
namespace {

Result<const LinearOp*> find_op(const OpTable& ops, const LinearWeight& weight, DType activation,
                                std::string_view name) {
  HEARTH_TRY(weight.format.validate(weight.n, weight.k).with_context(name));
  const LinearOp* op = ops.find_linear(weight.format, activation);
  if (!op)
    return unsupported("{}: the {} backend has no linear op for {} weights and {} activations", name, ops.backend,
                       to_string(weight.format), dtype_name(activation));
  return op;
}

}  // namespace

Status Model::bind_ops() {
  const OpTable& ops = *ops_;
  const bool complete = ops.embedding && ops.rmsnorm && ops.rope_table && ops.rope_kv_write && ops.attention &&
                        ops.attention_workspace_bytes && ops.silu_mul && ops.find_linear && ops.supports_kv;
  if (!complete) return unsupported("the {} backend lacks an op of the transformer block", ops.backend);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    LinearOps found;
    HEARTH_TRY_ASSIGN(found.qkv, find_op(ops, layer.qkv, activation_, fmt::format("layer {} qkv_proj", i)));
    HEARTH_TRY_ASSIGN(found.o, find_op(ops, layer.o, activation_, fmt::format("layer {} o_proj", i)));
    HEARTH_TRY_ASSIGN(found.gate_up, find_op(ops, ffn.gate_up, activation_, fmt::format("layer {} gate_up_proj", i)));
    HEARTH_TRY_ASSIGN(found.down, find_op(ops, ffn.down, activation_, fmt::format("layer {} down_proj", i)));
    layer_ops_.push_back(found);
  }
  HEARTH_TRY_ASSIGN(lm_head_op_, find_op(ops, weights_.lm_head, activation_, "lm_head"));
  return {};
}

Result<std::shared_ptr<const Model>> Model::bind(const ModelConfig& config, WeightSource& source, const OpTable& ops,
                                                 const ModelOptions& options, ThreadPool& pool) {
  if (options.activation != DType::kF32 && options.activation != DType::kBf16)
    return invalid_argument("activations of type {}; wanted f32 or bf16", dtype_name(options.activation));
  std::shared_ptr<Model> model(new Model);
  model->config_ = config;
  model->ops_ = &ops;
  model->activation_ = options.activation;
  model->shard_ = options.shard;
  HEARTH_TRY_ASSIGN(model->weights_,
                    load_weights(source, config, options.activation, options.shard, pool, options.progress));
  HEARTH_TRY(model->bind_ops());
  return std::shared_ptr<const Model>(std::move(model));
}

Result<std::shared_ptr<const Model>> Model::load(const Checkpoint& checkpoint, const OpTable& ops,
                                                 const ModelOptions& options, ThreadPool& pool) {
  const std::string where = checkpoint.dir().string();
  HEARTH_TRY_ASSIGN(const ModelConfig config, parse_model_config(checkpoint.config()).with_context(where));
  CheckpointSource source(checkpoint);
  HEARTH_TRY_ASSIGN(auto model, bind(config, source, ops, options, pool).with_context(where));
  HEARTH_TRY(source.check_all_used().with_context(where));
  return model;
}

Result<std::shared_ptr<const Model>> Model::dummy(const ModelConfig& config, const OpTable& ops,
                                                  const ModelOptions& options, DType weight_dtype, uint64_t seed,
                                                  ThreadPool& pool) {
  DummySource source(config, weight_dtype, seed);
  return bind(config, source, ops, options, pool);
}

}  // namespace hearth
