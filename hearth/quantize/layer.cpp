// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/layer.h"

#include <array>
#include <optional>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/quote.h"

namespace hearth {

std::span<const LayerTensors::Named> LayerTensors::linears() {
  static constexpr std::array<Named, 7> kLinears = {{{"self_attn.q_proj", &LayerTensors::q},
                                                     {"self_attn.k_proj", &LayerTensors::k},
                                                     {"self_attn.v_proj", &LayerTensors::v},
                                                     {"self_attn.o_proj", &LayerTensors::o},
                                                     {"mlp.gate_proj", &LayerTensors::gate},
                                                     {"mlp.up_proj", &LayerTensors::up},
                                                     {"mlp.down_proj", &LayerTensors::down}}};
  return kLinears;
}

Result<std::vector<float>> read_float_tensor(const Checkpoint& checkpoint, const std::string& name,
                                             const Shape& shape) {
  const TensorEntry* entry = checkpoint.find(name);
  if (entry == nullptr)
    return not_found("tensor '{}' {} is missing from {}", name, to_string(shape), checkpoint.dir().string());
  if (entry->shape != shape)
    return invalid_argument("tensor '{}' is {}; config.json wants {}", name, to_string(entry->shape), to_string(shape));
  if (entry->dtype != DType::kF32 && entry->dtype != DType::kF16 && entry->dtype != DType::kBf16)
    return unsupported("tensor '{}' is {}; hearth quantizes f32, f16 and bf16", name, dtype_name(entry->dtype));
  std::vector<float> values(static_cast<size_t>(shape.count()));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
  if (entry->dtype == DType::kF32) {
    HEARTH_TRY(checkpoint.read(*entry, bytes));
  } else {
    std::vector<std::byte> stored(static_cast<size_t>(entry->size_bytes));
    HEARTH_TRY(checkpoint.read(*entry, stored));
    HEARTH_TRY(convert_floats(entry->dtype, stored, DType::kF32, bytes));
  }
  if (const std::optional<int64_t> bad = find_non_finite(DType::kF32, bytes)) {
    const int64_t cols = shape.rank() > 1 ? shape.back() : 0;
    const std::string place = cols > 0 ? fmt::format("{}, {}", *bad / cols, *bad % cols) : fmt::format("{}", *bad);
    return corrupt("tensor {} is {} at [{}]; wanted finite numbers", quote_name(name),
                   values[static_cast<size_t>(*bad)], place);
  }
  return values;
}

namespace {

Result<std::vector<float>> read_weight(const Checkpoint& checkpoint, const Quantization* quantization,
                                       const std::string& module, int64_t n, int64_t k) {
  if (quantization != nullptr) {
    HEARTH_TRY_ASSIGN(const auto format, quantization->format(checkpoint, module, n, k));
    if (format) {
      HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix, quantization->read(checkpoint, module, n, k));
      std::vector<float> values(static_cast<size_t>(n * k));
      for (int64_t row = 0; row < n; ++row)
        matrix.dequantize_row(row, std::span(values).subspan(static_cast<size_t>(row * k), static_cast<size_t>(k)));
      return values;
    }
  }
  return read_float_tensor(checkpoint, module + ".weight", Shape{n, k});
}

Result<LayerLinear> read_linear(const Checkpoint& checkpoint, const Quantization* quantization,
                                const std::string& module, int64_t n, int64_t k, bool bias) {
  LayerLinear linear{.n = n, .k = k, .w = {}, .bias = {}};
  HEARTH_TRY_ASSIGN(linear.w, read_weight(checkpoint, quantization, module, n, k));
  if (bias) {
    HEARTH_TRY_ASSIGN(linear.bias, read_float_tensor(checkpoint, module + ".bias", Shape{n}));
  }
  return linear;
}

ConstTensorView view(const std::vector<float>& values) {
  if (values.empty()) return {};
  return {values.data(), DType::kF32, Shape{static_cast<int64_t>(values.size())}};
}

LinearWeight part(const LayerLinear& linear) {
  LinearWeight out{.format = WeightFormat::plain(DType::kF32),
                   .n = linear.n,
                   .k = linear.k,
                   .codes = ConstTensorView(linear.w.data(), DType::kF32, Shape{linear.n, linear.k})};
  out.bias = view(linear.bias);
  return out;
}

}  // namespace

int64_t linear_rows(const ModelConfig& c, LayerLinear LayerTensors::*linear) {
  if (linear == &LayerTensors::q) return c.heads * c.head_dim;
  if (linear == &LayerTensors::k || linear == &LayerTensors::v) return c.kv_heads * c.head_dim;
  if (linear == &LayerTensors::gate || linear == &LayerTensors::up) return c.intermediate_size;
  return c.hidden_size;
}

int64_t linear_columns(const ModelConfig& c, LayerLinear LayerTensors::*linear) {
  if (linear == &LayerTensors::o) return c.heads * c.head_dim;
  return linear == &LayerTensors::down ? c.intermediate_size : c.hidden_size;
}

bool linear_has_bias(const ModelConfig& c, LayerLinear LayerTensors::*linear) {
  if (linear == &LayerTensors::o) return c.o_bias;
  const bool mlp = linear == &LayerTensors::gate || linear == &LayerTensors::up || linear == &LayerTensors::down;
  return mlp ? c.mlp_bias : c.qkv_bias;
}

Result<LayerTensors> read_layer(const Checkpoint& checkpoint, const ModelConfig& c, int64_t layer,
                                const Quantization* quantization) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  LayerTensors out;
  const auto norm = [&](const char* name, int64_t size) {
    return read_float_tensor(checkpoint, prefix + name + ".weight", Shape{size});
  };
  HEARTH_TRY_ASSIGN(out.input_norm, norm("input_layernorm", c.hidden_size));
  HEARTH_TRY_ASSIGN(out.post_attention_norm, norm("post_attention_layernorm", c.hidden_size));
  if (c.qk_norm) {
    HEARTH_TRY_ASSIGN(out.q_norm, norm("self_attn.q_norm", c.head_dim));
    HEARTH_TRY_ASSIGN(out.k_norm, norm("self_attn.k_norm", c.head_dim));
  }
  for (const LayerTensors::Named& named : LayerTensors::linears()) {
    HEARTH_TRY_ASSIGN(out.*named.linear,
                      read_linear(checkpoint, quantization, prefix + named.name, linear_rows(c, named.linear),
                                  linear_columns(c, named.linear), linear_has_bias(c, named.linear)));
  }
  return out;
}

LayerWeights layer_weights(const LayerTensors& t) {
  LayerWeights weights;
  weights.input_norm = view(t.input_norm);
  weights.post_attention_norm = view(t.post_attention_norm);
  weights.q_norm = view(t.q_norm);
  weights.k_norm = view(t.k_norm);
  weights.qkv.parts = {part(t.q), part(t.k), part(t.v)};
  weights.o.parts = {part(t.o)};
  DenseFfn ffn;
  ffn.gate_up.parts = {part(t.gate), part(t.up)};
  ffn.down.parts = {part(t.down)};
  weights.ffn = std::move(ffn);
  return weights;
}

}  // namespace hearth
