// SPDX-License-Identifier: Apache-2.0
// Attention as it is written down: all scores of a row, their softmax, the weighted sum of V, in double.
// Allocates its row of scores (no other op does). One thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/validate.h"
#include "hearth/tensor/hadamard.h"
#include "hearth/tensor/kv_codec.h"

namespace hearth {
namespace {

// Keys or values of one kv head, as they are read back.
class StoredHead {
 public:
  StoredHead(const AttentionArgs& args, int64_t sequence, int64_t kv_head, float scale, bool values)
      : args_(args), blocks_(args.batch->blocks(sequence)), kv_head_(kv_head), scale_(scale), values_(values) {}

  void read(int64_t position, std::vector<float>& x) const {
    const KvLayout& layout = args_.kv.layout;
    const int64_t block = blocks_[position / layout.block_tokens], slot = position % layout.block_tokens;
    const std::byte* start = values_ ? args_.kv.value(block, args_.layer) : args_.kv.key(block, args_.layer);
    load_kv_head(layout.format, start + slot * layout.token_stride_bytes + kv_head_ * layout.head_stride_bytes,
                 start + layout.scale_offset_bytes + slot * layout.scale_token_stride_bytes +
                     kv_head_ * layout.scale_head_stride_bytes,
                 scale_, x);
  }

 private:
  const AttentionArgs& args_;
  std::span<const int64_t> blocks_;
  int64_t kv_head_;
  float scale_;
  bool values_;
};

// Row `token` of sequence s, at `position`.
template <class T>
void attend(const AttentionArgs& args, const KvScales& scales, int64_t s, int64_t token, int64_t position) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = layout.head_dim, group = args.heads / layout.kv_heads;
  const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
  std::vector<double> p(position + 1);
  std::vector<float> x(head_dim);
  for (int64_t h = 0; h < args.heads; ++h) {
    const int64_t kv_head = h / group;
    const StoredHead keys(args, s, kv_head, scales.key_scale(kv_head), false);
    const StoredHead values(args, s, kv_head, scales.value_scale(kv_head), true);
    const T* from = args.q.row<T>(token) + h * head_dim;
    T* out = args.out.row<T>(token) + h * head_dim;
    std::vector<double> q(head_dim), sum(head_dim);
    const float* channel = scales.channel_row(kv_head);
    for (int64_t i = 0; i < head_dim; ++i) q[i] = to_float(from[i]) / (channel ? double{channel[i]} : 1);
    if (layout.query_transform == QueryTransform::kHadamard) hadamard_rotate(std::span<double>(q));
    double largest = -INFINITY, total = 0;
    for (int64_t j = first; j <= position; ++j) {
      keys.read(j, x);
      p[j] = 0;
      for (int64_t i = 0; i < head_dim; ++i) p[j] += q[i] * x[i];
      p[j] *= args.scale;
      largest = std::max(largest, p[j]);
    }
    for (int64_t j = first; j <= position; ++j) {
      total += p[j] = std::exp(p[j] - largest);
      values.read(j, x);
      for (int64_t i = 0; i < head_dim; ++i) sum[i] += p[j] * x[i];
    }
    for (int64_t i = 0; i < head_dim; ++i) out[i] = from_float<T>(static_cast<float>(sum[i] / total));
  }
}

}  // namespace

Status attention_ref(const AttentionArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  HEARTH_TRY_ASSIGN(const KvScales scales,
                    check_kv_scales("attention", args.kv.layout, {args.k_channel_scale, args.k_scale, args.v_scale}));
  const StepBatch& batch = *args.batch;
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    for (int64_t i = 0; i < batch.query_len(s); ++i) {
      const int64_t position = batch.context_len[s] - batch.query_len(s) + i, token = batch.query_start[s] + i;
      args.q.dtype == DType::kF32 ? attend<float>(args, scales, s, token, position)
                                  : attend<bf16>(args, scales, s, token, position);
    }
  }
  return {};
}

}  // namespace hearth
