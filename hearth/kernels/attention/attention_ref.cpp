// SPDX-License-Identifier: Apache-2.0
// Attention as it is written down: all scores of a row, their softmax, the weighted sum of V, in double.
// Allocates its row of scores (no other op does). One thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/cpu/plain_kv.h"

namespace hearth {
namespace {

double element(const KvLayout& layout, const std::byte* head, int64_t i) {
  const void* data = head;
  return layout.format == KvFormatId::kF32 ? static_cast<const float*>(data)[i]
                                           : static_cast<const bf16*>(data)[i].to_float();
}

// Row `token` of sequence s, at `position`.
template <class T>
void attend(const AttentionArgs& args, int64_t s, int64_t token, int64_t position) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = layout.head_dim, group = args.heads / layout.kv_heads;
  const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
  std::vector<double> p(position + 1);
  for (int64_t h = 0; h < args.heads; ++h) {
    const T* q = args.q.row<T>(token) + h * head_dim;
    T* out = args.out.row<T>(token) + h * head_dim;
    const auto block = [&](int64_t j) { return args.batch->blocks(s)[j / layout.block_tokens]; };
    const auto place = [&](int64_t j) {
      return j % layout.block_tokens * layout.token_stride_bytes + h / group * layout.head_stride_bytes;
    };
    double largest = -INFINITY, total = 0;
    for (int64_t j = first; j <= position; ++j) {
      const std::byte* k = args.kv.key(block(j), args.layer) + place(j);
      p[j] = 0;
      for (int64_t i = 0; i < head_dim; ++i) p[j] += to_float(q[i]) * element(layout, k, i);
      p[j] *= args.scale;
      largest = std::max(largest, p[j]);
    }
    for (int64_t j = first; j <= position; ++j) total += p[j] = std::exp(p[j] - largest);
    for (int64_t i = 0; i < head_dim; ++i) {
      double sum = 0;
      for (int64_t j = first; j <= position; ++j)
        sum += p[j] * element(layout, args.kv.value(block(j), args.layer) + place(j), i);
      out[i] = from_float<T>(static_cast<float>(sum / total));
    }
  }
}

}  // namespace

Status attention_ref(const AttentionArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  HEARTH_TRY(cpu::require_plain_kv("attention", args.kv.layout));
  const StepBatch& batch = *args.batch;
  for (int64_t s = 0; s < batch.num_sequences(); ++s) {
    for (int64_t i = 0; i < batch.query_len(s); ++i) {
      const int64_t position = batch.context_len[s] - batch.query_len(s) + i, token = batch.query_start[s] + i;
      args.q.dtype == DType::kF32 ? attend<float>(args, s, token, position) : attend<bf16>(args, s, token, position);
    }
  }
  return {};
}

}  // namespace hearth
