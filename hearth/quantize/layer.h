// SPDX-License-Identifier: Apache-2.0
// The tensors of one transformer block in f32, owned, as the quantizer changes them before it encodes them. Names and
// shapes are those of a Hugging Face checkpoint: Q, K, V, gate and up apart.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/checkpoint/quantization.h"
#include "hearth/model/config.h"
#include "hearth/model/weights.h"

namespace hearth {

// y = x W^T + b.
struct LayerLinear {
  int64_t n = 0;
  int64_t k = 0;
  std::vector<float> w;     // [n, k] row-major
  std::vector<float> bias;  // [n]; empty: none

  std::span<float> row(int64_t i) { return {w.data() + i * k, static_cast<size_t>(k)}; }
  std::span<const float> row(int64_t i) const { return {w.data() + i * k, static_cast<size_t>(k)}; }
};

struct LayerTensors {
  std::vector<float> input_norm, post_attention_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                   // [head_dim]; empty: none
  LayerLinear q, k, v, o, gate, up, down;
  // [kv_heads, head_dim], empty: none. After RoPE K is stored less the offset, times the scale; Q divided by the scale.
  std::vector<float> k_channel_scale, k_channel_offset;

  // "self_attn.q_proj", ...: the seven linears by the names that checkpoints give them, in the order above.
  struct Named {
    const char* name;
    LayerLinear LayerTensors::*linear;
  };
  static std::span<const Named> linears();
};

// Rows and columns that a model's linear has, and whether it has a bias.
int64_t linear_rows(const ModelConfig& config, LayerLinear LayerTensors::*linear);
int64_t linear_columns(const ModelConfig& config, LayerLinear LayerTensors::*linear);
bool linear_has_bias(const ModelConfig& config, LayerLinear LayerTensors::*linear);

// A plain tensor as f32. Errors as load_weights: NotFound, InvalidArgument for a shape, Unsupported for a dtype,
// Corrupt for NaN or infinity.
Result<std::vector<float>> read_float_tensor(const Checkpoint& checkpoint, const std::string& name, const Shape& shape);

// Reads block `layer` of a checkpoint; linears that `quantization` says are quantized as what they stand for. Errors
// as read_float_tensor and Quantization::read.
Result<LayerTensors> read_layer(const Checkpoint& checkpoint, const ModelConfig& config, int64_t layer,
                                const Quantization* quantization = nullptr);

// Views of the tensors for forward_block: f32 weights, Q, K and V as parts. They live as long as `tensors`.
LayerWeights layer_weights(const LayerTensors& tensors);

}  // namespace hearth
