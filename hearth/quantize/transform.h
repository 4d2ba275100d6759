// SPDX-License-Identifier: Apache-2.0
// Changes of a layer's weights that leave what the layer computes as it was, so that what quantization does afterwards
// hurts less. Each is exact in real numbers and costs one rounding to f32 per weight; a factor that is a power of two
// costs none, as long as nothing leaves the range of f32.
// Factors are finite and positive (REQUIRES), sizes are the layer's. Any thread that owns the tensors.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/model/config.h"
#include "hearth/quantize/layer.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

// How the rows of Q, K and V fall into heads. Query head h reads kv head h / group().
struct HeadShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;

  static HeadShape of(const ModelConfig& config) { return {config.heads, config.kv_heads, config.head_dim}; }
  int64_t group() const { return heads / kv_heads; }
  int64_t pairs() const { return head_dim / 2; }
};

// The columns of every reader times s, the norm before them divided by s.
//   norm [hidden] f32, an RMSNorm's weight;  readers [n, hidden] each;  s [hidden]
// `stored` is the type that the norm will be stored in: its new weights are rounded to that, and the columns take up
// the difference. A channel whose new weight would be 0 or infinite in that type stays as it is.
// Sources: AWQ (Lin et al., 2023, section 3.2); FireQ (arXiv 2505.20839, figure 1), Lambda_2.
void scale_inputs(std::span<float> norm, std::span<LayerLinear* const> readers, std::span<const float> s,
                  DType stored = DType::kF32);
// The same for input_norm and Q, K, V, and for post_attention_norm and gate, up.
void scale_qkv_inputs(LayerTensors& layer, std::span<const float> s, DType stored = DType::kF32);
void scale_gate_up_inputs(LayerTensors& layer, std::span<const float> s, DType stored = DType::kF32);

// Rows of up (and its bias) divided by s, columns of down times s. s [ffn]. Source: FireQ, Lambda_3.
void scale_up_down(LayerTensors& layer, std::span<const float> s);

// Rows of V (and its bias) divided by s, the columns of O that read them, of every query head of the group, times s.
//   s [kv_heads, head_dim]. Source: FireQ, Lambda_1.
void scale_v_o(LayerTensors& layer, const HeadShape& shape, std::span<const float> s);

// Rows i and i + head_dim / 2 of each head of K (and its bias) times n, those of the group's query heads divided by n.
// Equal factors on both channels of a pair commute with RoPE's rotation, so that every q.k stays.
//   n [kv_heads, head_dim / 2]. Source: FireQ section 3.2, pre-RoPE normalisation (theorem 3.1).
// Layers with q_norm and k_norm: the norm would undo factors of rows, so its weights take them instead. All heads share
// those; Unsupported, with nothing changed, where n differs between kv heads.
Status scale_rope_pairs(LayerTensors& layer, const HeadShape& shape, std::span<const float> n);

// k_channel_scale times s, which the KV cache multiplies K with and divides Q by after RoPE. No weight changes: a pool
// of a format that does not know the scale gives the same, unscaled.
//   s [kv_heads, head_dim]. Source: FireQ section 3.2, post-RoPE scaling.
void scale_k_channels(LayerTensors& layer, const HeadShape& shape, std::span<const float> s);

// k_channel_offset plus `offset`, which the KV cache takes from K after RoPE, before it multiplies: every score of a
// query falls by the same number, which softmax does not see. No weight changes, as with scale_k_channels.
//   offset [kv_heads, head_dim], finite. Source: smoothing of K, SageAttention (arXiv 2410.02367, section 4.2), there
//   with the mean of the sequence.
void shift_k_channels(LayerTensors& layer, const HeadShape& shape, std::span<const float> offset);

// Each kv head of V (rows and bias) and the columns of O that read it, of every query head of the group, rotated by the
// normalised Hadamard matrix (tensor/hadamard.h). Its own inverse. Unsupported for a head_dim that is no power of two.
// Source: SAW-INT4 (arXiv 2604.19157), the rotation of V, folded because no RoPE acts on V.
Status rotate_v(LayerTensors& layer, const HeadShape& shape);

// V of each kv head becomes v a, O's columns that read it take a's inverse.
//   a, inverse [kv_heads, head_dim, head_dim] row-major. REQUIRES: inverse is a's, of each head.
void mix_v(LayerTensors& layer, const HeadShape& shape, std::span<const double> a, std::span<const double> inverse);

}  // namespace hearth
