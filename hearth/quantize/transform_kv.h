// SPDX-License-Identifier: Apache-2.0
// What calibration tells of keys, queries and values, and the factors for a 4-bit KV cache that follow from it.
//   I1. Statistics are f64 sums in the order of observe(); the sample is the beginning of the first sequences seen.
//   I2. Factors do not change, in any bit, with powers of two by which rows of K were multiplied and Q's divided (or
//       V's and O's columns): what comes out of the transformation is the same, so such outliers cost nothing.
// One owner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/quantize/layer.h"
#include "hearth/quantize/transform.h"
#include "hearth/quantize/transform_scales.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/shape.h"

namespace hearth {

class AttentionStats {
 public:
  static constexpr int64_t kSampledSequences = 2, kSampledTokens = 512;  // of each

  // `layer` lends q_norm and k_norm; it is not kept.
  AttentionStats(const HeadShape& shape, const LayerTensors& layer, double norm_eps);

  // Adds a sequence from its first token on, as a BlockObserver sees it at BlockPoint::kQkv.
  //   qkv [tokens, (heads + 2 kv_heads) head_dim] f32 before RoPE;  cos_sin [tokens, head_dim] f32 (rope.h)
  // InvalidArgument for shapes that disagree or a value that is NaN or infinite; nothing is added then. On the threads
  // of
  // `pool`, if given: the same bits.
  Status observe(ConstTensorView qkv, ConstTensorView cos_sin, ThreadPool* pool = nullptr);

  const HeadShape& shape() const { return shape_; }
  int64_t tokens() const { return tokens_; }

  // [kv_heads, head_dim] root mean squares over tokens, after RoPE; Q's over the heads of the group too.
  std::vector<double> key_rms() const { return rms(key_square_, 1); }
  std::vector<double> query_rms() const { return rms(query_square_, shape_.group()); }
  std::vector<double> value_rms() const { return rms(value_square_, 1); }
  // [kv_heads, head_dim] K's mean over tokens, after RoPE.
  std::vector<double> key_mean() const;
  // [kv_heads, head_dim] largest |k| after RoPE.
  const std::vector<double>& key_max() const { return key_max_; }
  // [kv_heads, head_dim / 2] largest sqrt(k_f^2 + k_{f + head_dim / 2}^2), which RoPE does not change.
  const std::vector<double>& key_pair_max() const { return key_pair_max_; }

  // A sample: [sampled()][heads or kv_heads][head_dim], Q and K after RoPE. Sequence i of it is tokens
  // [sequence_starts()[i], sequence_starts()[i + 1]).
  int64_t sampled() const { return static_cast<int64_t>(sample_.size()) / columns(); }
  std::span<const int64_t> sequence_starts() const { return starts_; }
  std::span<const float> sampled_query(int64_t token, int64_t head) const { return sampled_head(token, head); }
  std::span<const float> sampled_key(int64_t token, int64_t kv_head) const {
    return sampled_head(token, shape_.heads + kv_head);
  }
  std::span<const float> sampled_value(int64_t token, int64_t kv_head) const {
    return sampled_head(token, shape_.heads + shape_.kv_heads + kv_head);
  }

 private:
  int64_t columns() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }
  std::span<const float> sampled_head(int64_t token, int64_t head) const;
  std::vector<double> rms(const std::vector<double>& squares, int64_t per_token) const;
  void add_group(std::span<const float> row, int64_t group);

  HeadShape shape_;
  std::vector<float> q_norm_, k_norm_;
  double norm_eps_;
  int64_t tokens_ = 0;
  std::vector<double> key_sum_, key_square_, query_square_, value_square_, key_max_, key_pair_max_;
  std::vector<float> sample_;  // rows of qkv, Q and K after norm and RoPE
  std::vector<int64_t> starts_{0};
};

// FireQ's own rules (arXiv 2505.20839, section 3.2), with fixed constants.
// n = alpha / the largest norm of the pair: [kv_heads, head_dim / 2] for scale_rope_pairs.
std::vector<float> fireq_pair_factors(const AttentionStats& stats, double alpha = 8);
// beta / the channel's largest |k| for the top_k channels of each kv head and their pair partners, 1 for the others:
// [kv_heads, head_dim] for scale_k_channels, as if no pair of theirs were scaled before RoPE.
std::vector<float> fireq_channel_factors(const AttentionStats& stats, int64_t top_k = 8, double beta = 8);

// The powers of two next to what makes the two sides of each pair, K's and Q's, equally large: for scale_rope_pairs
// where the cache stores plain floats. The layer's bits follow, but for powers of two; what is chosen after it from
// rows of K and Q no longer sees outliers among them. Layers with k_norm get the same factors in all kv heads.
std::vector<float> even_pair_factors(const AttentionStats& stats, const LayerTensors& layer);

struct KeyScales {
  std::vector<float> pairs;  // [kv_heads, head_dim / 2] for scale_rope_pairs
  std::vector<float>
      channels;  // [kv_heads, head_dim] for scale_k_channels, on top of `pairs`; empty: the format has none
  std::vector<float> offsets;  // [kv_heads, head_dim] for shift_k_channels, between the two; empty: none
  double exponent = -1;        // of balancing_factors; -1: no factors
  double loss = 0;             // expected squared error of a score, but for what is the same for all keys
  double plain_loss = 0;       // without factors
};

// The factors with which keys of `format` (a 4-bit one) lose least, among balancing_factors of a grid of exponents and
// none. The loss is the variance of a query's score errors under its own attention probabilities, mean over queries of
// the sample, which is twice the KL divergence that they cost the probabilities, to second order; attention windows are
// left out. Layers with k_norm get the same `pairs` in all kv heads. InvalidArgument without tokens.
//   offsets [kv_heads, head_dim] what may be taken from K after RoPE, where that loses less; empty: nothing. Only
//   kInt4Fireq takes it: SAW's rotation spreads a mean over all channels, and its base takes it up.
Result<KeyScales> search_key_scales(const AttentionStats& stats, const LayerTensors& layer, KvFormatId format,
                                    std::span<const double> offsets = {});

// The means of K, but 0 for the pairs that turn by more than a radian between the last token of the calibration's
// windows and that of the model's context: their means are others there. [kv_heads, head_dim]
//   inv_freq [head_dim / 2] radians per token
std::vector<double> steady_key_means(const AttentionStats& stats, std::span<const float> inv_freq, int64_t window,
                                     int64_t context);

struct ValueScales {
  std::vector<float> factors;  // [kv_heads, head_dim] for scale_v_o
  bool rotate = false;         // rotate_v after it
  double exponent = -1;        // of balancing_factors; -1: no factors
  double loss = 0;             // mean squared error of O's output from one token's value
  double plain_loss = 0;
};

// The factors with which values lose least, with and without a rotation.
Result<ValueScales> search_value_scales(const AttentionStats& stats, const LayerTensors& layer, KvFormatId format);

}  // namespace hearth
