// SPDX-License-Identifier: Apache-2.0
// Host code of the Hopper attention: the selector and the plan of its scratch.
#include <algorithm>

#include "hearth/kernels/attention/attention_sm90.h"

namespace hearth {

int sm90::select_attention_config(int64_t queries_per_kv_head, int64_t head_dim) {
  int best = -1;
  for (int i = 0; i < kAttentionConfigCount; ++i) {
    const AttentionConfig& config = kAttentionConfigs[i];
    if (config.max_head_dim() < head_dim) continue;
    if (best >= 0 && kAttentionConfigs[best].max_head_dim() < config.max_head_dim()) break;
    best = i;
    if (config.group >= queries_per_kv_head) break;
  }
  return best;
}

// For as many rows as fit into 32 MiB: steps with more rows than that fill the GPU without a split.
int64_t attention_sm90_workspace_bytes(int64_t max_tokens, int64_t heads, int64_t head_dim, int64_t max_context, int) {
  constexpr int64_t kMostBytes = int64_t{32} << 20;
  const int64_t row = heads * sm90::attention_chunks(max_context) * sm90::attention_partial_floats(head_dim) * 4;
  return row > kMostBytes ? 0 : std::min(max_tokens * row, kMostBytes);
}

}  // namespace hearth
