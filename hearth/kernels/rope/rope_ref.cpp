// SPDX-License-Identifier: Apache-2.0
// The two rope ops as they are written down, in double from the f32 angle on. One thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/kernels/cpu/plain_kv.h"
#include "hearth/kernels/rope/rope.h"

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

void store(const KvView& kv, std::byte* to, int64_t i, float value) {
  void* head = to;
  if (kv.layout.format == KvFormatId::kF32) {
    static_cast<float*>(head)[i] = value;
  } else {
    static_cast<bf16*>(head)[i] = bf16::from_float(value);
  }
}

template <class T>
void write_token(const RopeKvWriteArgs& args, int64_t token, int64_t block_offset, int64_t slot) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = args.head_dim;
  T* q = args.qkv.row<T>(token);
  const T* k = q + args.heads * head_dim;
  const T* v = k + args.kv_heads * head_dim;
  const float* cos_sin = args.cos_sin.row<float>(token);
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    const int64_t place = slot * layout.token_stride_bytes + h * layout.head_stride_bytes;
    std::byte* key = args.kv.key(block_offset, args.layer) + place;
    std::byte* value = args.kv.value(block_offset, args.layer) + place;
    for (int64_t i = 0; i < head_dim; ++i) {
      const double x = rotated(k + h * head_dim, head_dim, i, args.k_norm, args.norm_eps, cos_sin);
      store(args.kv, key, i, static_cast<float>(x));
      store(args.kv, value, i, to_float(v[h * head_dim + i]));
    }
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
  HEARTH_TRY(cpu::require_plain_kv("rope_kv_write", args.kv.layout));
  const StepBatch& batch = *args.batch;
  const int64_t block_tokens = args.kv.layout.block_tokens;
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    for (int64_t i = 0; i < batch.query_len(s); ++i) {
      const int64_t position = batch.context_len[s] - batch.query_len(s) + i, token = batch.query_start[s] + i;
      const int64_t block = batch.blocks(s)[position / block_tokens];
      args.qkv.dtype == DType::kF32 ? write_token<float>(args, token, block, position % block_tokens)
                                    : write_token<bf16>(args, token, block, position % block_tokens);
    }
  }
  return {};
}

}  // namespace hearth
