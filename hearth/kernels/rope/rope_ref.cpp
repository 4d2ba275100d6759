// SPDX-License-Identifier: Apache-2.0
// The two rope ops as they are written down, in double from the f32 angle on. One thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/kernels/rope/rope.h"
#include "hearth/kernels/validate.h"
#include "hearth/tensor/hadamard.h"
#include "hearth/tensor/kv_codec.h"

namespace hearth {
namespace {

double weight_at(const ConstTensorView& weight, int64_t i) {
  return weight.dtype == DType::kF32 ? weight.row<float>(0)[i] : weight.row<bf16>(0)[i].to_float();
}

// Channel i of a head after the norm (where there is one) and the rotation.
template <class T>
double rotated(const T* head, int64_t head_dim, int64_t i, const ConstTensorView& norm, double eps,
               const float* cos_sin) {
  const int64_t half = head_dim / 2;
  double scale = 1;
  if (norm) {
    double squares = 0;
    for (int64_t c = 0; c < head_dim; ++c) squares += double{to_float(head[c])} * to_float(head[c]);
    scale = 1 / std::sqrt(squares / static_cast<double>(head_dim) + eps);
  }
  const auto value = [&](int64_t c) { return to_float(head[c]) * scale * (norm ? weight_at(norm, c) : 1); };
  const int64_t pair = i % half;
  const double cos = cos_sin[pair], sin = cos_sin[half + pair];
  return i < half ? value(pair) * cos - value(pair + half) * sin : value(pair + half) * cos + value(pair) * sin;
}

// Stores a head as the format says, from the f32 nearest to each number.
void store(const KvLayout& layout, const std::vector<double>& x, float scale, std::byte* start, int64_t slot,
           int64_t head) {
  const std::vector<float> rounded(x.begin(), x.end());
  store_kv_head(layout.format, rounded, scale,
                start + slot * layout.token_stride_bytes + head * layout.head_stride_bytes,
                start + layout.scale_offset_bytes + slot * layout.scale_token_stride_bytes +
                    head * layout.scale_head_stride_bytes);
}

template <class T>
void write_token(const RopeKvWriteArgs& args, const KvScales& scales, int64_t token, int64_t block_offset,
                 int64_t slot) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = args.head_dim;
  T* q = args.qkv.row<T>(token);
  const T* k = q + args.heads * head_dim;
  const T* v = k + args.kv_heads * head_dim;
  const float* cos_sin = args.cos_sin.row<float>(token);
  std::vector<double> key(head_dim), value(head_dim);
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    const float *channel = scales.channel_row(h), *offset = scales.offset_row(h);
    for (int64_t i = 0; i < head_dim; ++i) {
      key[i] = rotated(k + h * head_dim, head_dim, i, args.k_norm, args.norm_eps, cos_sin);
      key[i] = (key[i] - (offset ? offset[i] : 0)) * (channel ? channel[i] : 1);
      value[i] = to_float(v[h * head_dim + i]);
    }
    if (layout.query_transform == QueryTransform::kHadamard) hadamard_rotate(std::span<double>(key));
    store(layout, key, scales.key_scale(h), args.kv.key(block_offset, args.layer), slot, h);
    store(layout, value, scales.value_scale(h), args.kv.value(block_offset, args.layer), slot, h);
  }
  for (int64_t h = 0; h < args.heads; ++h) {
    T* head = q + h * head_dim;
    // Every channel needs others of its head as they were.
    std::vector<T> result(head_dim);
    for (int64_t i = 0; i < head_dim; ++i)
      result[i] = from_float<T>(static_cast<float>(rotated(head, head_dim, i, args.q_norm, args.norm_eps, cos_sin)));
    std::copy(result.begin(), result.end(), head);
  }
}

}  // namespace

Status rope_table_ref(const RopeTableArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  const int64_t half = args.inv_freq.cols();
  const float* inv_freq = args.inv_freq.row<float>(0);
  for (size_t t = 0; t < args.positions.size(); ++t) {
    float* row = args.cos_sin.row<float>(static_cast<int64_t>(t));
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(args.positions[t]) * inv_freq[i];
      row[i] = static_cast<float>(std::cos(double{angle})) * args.scale;
      row[half + i] = static_cast<float>(std::sin(double{angle})) * args.scale;
    }
  }
  return {};
}

Status rope_kv_write_ref(const RopeKvWriteArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  HEARTH_TRY_ASSIGN(const KvScales scales,
                    check_kv_scales("rope_kv_write", args.kv.layout,
                                    {args.k_channel_scale, args.k_scale, args.v_scale, args.k_channel_offset}));
  const StepBatch& batch = *args.batch;
  const int64_t block_tokens = args.kv.layout.block_tokens;
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    for (int64_t i = 0; i < batch.query_len(s); ++i) {
      const int64_t position = batch.context_len[s] - batch.query_len(s) + i, token = batch.query_start[s] + i;
      const int64_t block = batch.blocks(s)[position / block_tokens];
      args.qkv.dtype == DType::kF32 ? write_token<float>(args, scales, token, block, position % block_tokens)
                                    : write_token<bf16>(args, scales, token, block, position % block_tokens);
    }
  }
  return {};
}

}  // namespace hearth
