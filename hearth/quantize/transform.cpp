// SPDX-License-Identifier: Apache-2.0
// Factors are applied in f64 and rounded once. Products with powers of two are exact that way.
#include "hearth/quantize/transform.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "hearth/base/check.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {
namespace {

void check_factors(const char* what, std::span<const float> s, int64_t wanted) {
  HEARTH_CHECK(static_cast<int64_t>(s.size()) == wanted, "{}: {} factors, wanted {}", what, s.size(), wanted);
  for (size_t i = 0; i < s.size(); ++i)
    HEARTH_CHECK(std::isfinite(s[i]) && s[i] > 0, "{}: factor {} is {}", what, i, s[i]);
}

void check_heads(const LayerTensors& layer, const HeadShape& shape) {
  HEARTH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "{} heads on {} kv heads", shape.heads,
               shape.kv_heads);
  HEARTH_CHECK(layer.q.n == shape.heads * shape.head_dim && layer.k.n == shape.kv_heads * shape.head_dim &&
                   layer.v.n == layer.k.n && layer.o.k == layer.q.n,
               "Q, K, V of {}, {}, {} rows and O of {} columns for {} and {} heads of {}", layer.q.n, layer.k.n,
               layer.v.n, layer.o.k, shape.heads, shape.kv_heads, shape.head_dim);
}

void multiply(float& value, double factor) { value = static_cast<float>(value * factor); }

void scale_row(LayerLinear& linear, int64_t row, double factor) {
  for (float& w : linear.row(row)) multiply(w, factor);
  if (!linear.bias.empty()) multiply(linear.bias[static_cast<size_t>(row)], factor);
}

// factors [k]
void scale_columns(LayerLinear& linear, std::span<const double> factors) {
  for (int64_t i = 0; i < linear.n; ++i) {
    const std::span<float> row = linear.row(i);
    for (size_t j = 0; j < row.size(); ++j) multiply(row[j], factors[j]);
  }
}

float rounded_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kF32: return value;
    case DType::kBf16: return bf16::from_float(value).to_float();
    case DType::kF16: return f16::from_float(value).to_float();
    default: HEARTH_CHECK(false, "a norm stored as {}", dtype_name(dtype)); return value;
  }
}

}  // namespace

void scale_inputs(std::span<float> norm, std::span<LayerLinear* const> readers, std::span<const float> s,
                  DType stored) {
  check_factors("scale_inputs", s, static_cast<int64_t>(norm.size()));
  std::vector<double> columns(s.begin(), s.end());
  for (size_t j = 0; j < norm.size(); ++j) {
    const float old = norm[j];
    if (old == 0) continue;
    const float scaled = rounded_to(stored, static_cast<float>(old / double{s[j]}));
    if (scaled == 0 || !std::isfinite(scaled)) {
      columns[j] = 1;
      continue;
    }
    norm[j] = scaled;
    // Not s: what the rounded norm lacks.
    columns[j] = double{old} / scaled;
  }
  for (LayerLinear* reader : readers) {
    HEARTH_CHECK(reader->k == static_cast<int64_t>(norm.size()), "scale_inputs: {} columns after a norm of {}",
                 reader->k, norm.size());
    scale_columns(*reader, columns);
  }
}

void scale_qkv_inputs(LayerTensors& layer, std::span<const float> s, DType stored) {
  LayerLinear* const readers[] = {&layer.q, &layer.k, &layer.v};
  scale_inputs(layer.input_norm, readers, s, stored);
}

void scale_gate_up_inputs(LayerTensors& layer, std::span<const float> s, DType stored) {
  LayerLinear* const readers[] = {&layer.gate, &layer.up};
  scale_inputs(layer.post_attention_norm, readers, s, stored);
}

void scale_up_down(LayerTensors& layer, std::span<const float> s) {
  check_factors("scale_up_down", s, layer.up.n);
  HEARTH_CHECK(layer.down.k == layer.up.n, "up of {} rows, down of {} columns", layer.up.n, layer.down.k);
  for (int64_t i = 0; i < layer.up.n; ++i) scale_row(layer.up, i, 1 / double{s[static_cast<size_t>(i)]});
  const std::vector<double> columns(s.begin(), s.end());
  scale_columns(layer.down, columns);
}

void scale_v_o(LayerTensors& layer, const HeadShape& shape, std::span<const float> s) {
  check_heads(layer, shape);
  check_factors("scale_v_o", s, layer.v.n);
  for (int64_t i = 0; i < layer.v.n; ++i) scale_row(layer.v, i, 1 / double{s[static_cast<size_t>(i)]});
  std::vector<double> columns(static_cast<size_t>(layer.o.k));
  for (int64_t h = 0; h < shape.heads; ++h)
    for (int64_t i = 0; i < shape.head_dim; ++i)
      columns[static_cast<size_t>(h * shape.head_dim + i)] =
          s[static_cast<size_t>(h / shape.group() * shape.head_dim + i)];
  scale_columns(layer.o, columns);
}

Status scale_rope_pairs(LayerTensors& layer, const HeadShape& shape, std::span<const float> n) {
  check_heads(layer, shape);
  const int64_t pairs = shape.pairs();
  check_factors("scale_rope_pairs", n, shape.kv_heads * pairs);
  const auto factor = [&](int64_t kv_head, int64_t channel) {
    return double{n[static_cast<size_t>(kv_head * pairs + channel % pairs)]};
  };
  const auto scale_offset = [&] {
    for (size_t i = 0; i < layer.k_channel_offset.size(); ++i) {
      const auto channel = static_cast<int64_t>(i);
      multiply(layer.k_channel_offset[i], factor(channel / shape.head_dim, channel % shape.head_dim));
    }
  };
  if (!layer.k_norm.empty() || !layer.q_norm.empty()) {
    HEARTH_CHECK(layer.k_norm.size() == layer.q_norm.size(), "q_norm of {} and k_norm of {}", layer.q_norm.size(),
                 layer.k_norm.size());
    for (int64_t h = 1; h < shape.kv_heads; ++h)
      for (int64_t f = 0; f < pairs; ++f)
        if (factor(h, f) != factor(0, f))
          return unsupported(
              "RoPE pair {} has factor {} in kv head {} and {} in head 0; all heads share k_norm, wanted one factor", f,
              factor(h, f), h, factor(0, f));
    for (int64_t i = 0; i < shape.head_dim; ++i) {
      multiply(layer.k_norm[static_cast<size_t>(i)], factor(0, i));
      multiply(layer.q_norm[static_cast<size_t>(i)], 1 / factor(0, i));
    }
    scale_offset();
    return {};
  }
  for (int64_t h = 0; h < shape.kv_heads; ++h)
    for (int64_t i = 0; i < shape.head_dim; ++i) scale_row(layer.k, h * shape.head_dim + i, factor(h, i));
  for (int64_t h = 0; h < shape.heads; ++h)
    for (int64_t i = 0; i < shape.head_dim; ++i)
      scale_row(layer.q, h * shape.head_dim + i, 1 / factor(h / shape.group(), i));
  scale_offset();
  return {};
}

void scale_k_channels(LayerTensors& layer, const HeadShape& shape, std::span<const float> s) {
  check_factors("scale_k_channels", s, shape.kv_heads * shape.head_dim);
  if (layer.k_channel_scale.empty()) layer.k_channel_scale.assign(s.size(), 1.0f);
  HEARTH_CHECK(layer.k_channel_scale.size() == s.size(), "k_channel_scale of {}, wanted {}",
               layer.k_channel_scale.size(), s.size());
  for (size_t i = 0; i < s.size(); ++i) multiply(layer.k_channel_scale[i], s[i]);
}

void shift_k_channels(LayerTensors& layer, const HeadShape& shape, std::span<const float> offset) {
  HEARTH_CHECK(std::ssize(offset) == shape.kv_heads * shape.head_dim, "shift_k_channels: {} offsets, wanted {}",
               offset.size(), shape.kv_heads * shape.head_dim);
  if (layer.k_channel_offset.empty()) layer.k_channel_offset.assign(offset.size(), 0.0f);
  for (size_t i = 0; i < offset.size(); ++i) layer.k_channel_offset[i] += offset[i];
}

namespace {

// Replaces `head_dim` numbers, `stride` apart, by what `change` makes of them in f64.
template <class Change>
void change_vector(float* first, int64_t stride, int64_t head_dim, std::vector<double>& scratch, const Change& change) {
  scratch.resize(static_cast<size_t>(head_dim));
  for (int64_t i = 0; i < head_dim; ++i) scratch[static_cast<size_t>(i)] = first[i * stride];
  change(scratch);
  for (int64_t i = 0; i < head_dim; ++i) first[i * stride] = static_cast<float>(scratch[static_cast<size_t>(i)]);
}

// change_v(kv head, a vector of V's head), change_o(kv head, a vector of O's columns).
template <class ChangeV, class ChangeO>
void change_heads_of_v(LayerTensors& layer, const HeadShape& shape, const ChangeV& change_v, const ChangeO& change_o) {
  check_heads(layer, shape);
  const int64_t dim = shape.head_dim;
  std::vector<double> scratch;
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    const auto change = [&](std::vector<double>& x) { change_v(h, x); };
    for (int64_t j = 0; j < layer.v.k; ++j)
      change_vector(layer.v.w.data() + h * dim * layer.v.k + j, layer.v.k, dim, scratch, change);
    if (!layer.v.bias.empty()) change_vector(layer.v.bias.data() + h * dim, 1, dim, scratch, change);
  }
  for (int64_t i = 0; i < layer.o.n; ++i)
    for (int64_t h = 0; h < shape.heads; ++h)
      change_vector(layer.o.w.data() + i * layer.o.k + h * dim, 1, dim, scratch,
                    [&](std::vector<double>& x) { change_o(h / shape.group(), x); });
}

}  // namespace

Status rotate_v(LayerTensors& layer, const HeadShape& shape) {
  if (!std::has_single_bit(static_cast<uint64_t>(shape.head_dim)))
    return unsupported("V of head_dim {} cannot be rotated; wanted a power of two", shape.head_dim);
  const auto rotate = [](int64_t, std::vector<double>& x) { hadamard_rotate(std::span<double>(x)); };
  change_heads_of_v(layer, shape, rotate, rotate);
  return {};
}

void mix_v(LayerTensors& layer, const HeadShape& shape, std::span<const double> a, std::span<const double> inverse) {
  const size_t dim = static_cast<size_t>(shape.head_dim), square = dim * dim;
  HEARTH_CHECK(a.size() == static_cast<size_t>(shape.kv_heads) * square && inverse.size() == a.size(),
               "mix_v: matrices of {} and {} numbers, wanted {}", a.size(), inverse.size(),
               static_cast<size_t>(shape.kv_heads) * square);
  // O's columns take inverse x, which is x times the transpose.
  std::vector<double> transposed(inverse.size());
  for (size_t h = 0; h < static_cast<size_t>(shape.kv_heads); ++h)
    for (size_t i = 0; i < dim; ++i)
      for (size_t j = 0; j < dim; ++j) transposed[h * square + j * dim + i] = inverse[h * square + i * dim + j];
  std::vector<double> result(dim);
  const auto times = [&](std::span<const double> matrices) {
    return [&result, matrices, dim, square](int64_t h, std::vector<double>& x) {
      const double* m = matrices.data() + static_cast<size_t>(h) * square;
      std::fill(result.begin(), result.end(), 0.0);
      for (size_t i = 0; i < dim; ++i)
        for (size_t j = 0; j < dim; ++j) result[j] += x[i] * m[i * dim + j];
      x = result;
    };
  };
  change_heads_of_v(layer, shape, times(a), times(transposed));
}

}  // namespace hearth
