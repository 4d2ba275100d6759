// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/model.h"

#include "hearth/model/architecture.h"

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
  HEARTH_TRY_ASSIGN(model->weights_, load_weights(source, config,
                                                  {.activation = options.activation,
                                                   .shard = options.shard,
                                                   .memory = &ops.memory(),
                                                   .progress = options.progress},
                                                  pool));
  HEARTH_TRY(model->bind_ops());
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
