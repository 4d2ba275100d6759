// SPDX-License-Identifier: Apache-2.0
// The division of attention_cpu's work (attention_plan.h).
#include "hearth/kernels/attention/attention_plan.h"

#include <algorithm>

namespace hearth::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ceil_div for row blocks; decode has one per sequence, and unit() walks over all sequences.
int64_t row_blocks(int64_t rows, int64_t rows_per_unit) {
  return rows <= rows_per_unit ? int64_t{rows > 0} : ceil_div(rows, rows_per_unit);
}

}  // namespace

AttentionPlan AttentionPlan::make(const AttentionArgs& args, int threads) {
  AttentionPlan plan;
  plan.args = &args;
  plan.group = args.heads / args.kv.layout.kv_heads;
  const StepBatch& batch = *args.batch;
  int64_t longest = 0;
  for (int64_t s = 0; s < batch.num_sequences(); ++s)
    if (batch.query_len(s) > 0) longest = std::max<int64_t>(longest, batch.context_len[s]);
  plan.max_partitions = ceil_div(longest, kPartitionKeys);
  // Long blocks of rows use a key tile more often; several units per thread balance the team.
  for (plan.rows_per_unit = kMaxRows;; plan.rows_per_unit /= 2) {
    plan.units = 0;
    for (int64_t s = 0; s < batch.num_sequences(); ++s)
      plan.units += args.kv.layout.kv_heads * row_blocks(batch.query_len(s) * plan.group, plan.rows_per_unit);
    if (plan.units >= 2 * threads || plan.rows_per_unit <= kSplitRows) break;
  }
  plan.split = threads > 1 && plan.units < 2 * threads && plan.rows_per_unit <= kSplitRows && plan.max_partitions > 1;
  return plan;
}

AttentionUnit AttentionPlan::unit(int64_t index) const {
  const StepBatch& batch = *args->batch;
  const int64_t kv_heads = args->kv.layout.kv_heads;
  for (int64_t s = 0;; ++s) {
    const int64_t rows = batch.query_len(s) * group, units_here = kv_heads * row_blocks(rows, rows_per_unit);
    if (index < units_here) {
      const int64_t begin = index / kv_heads * rows_per_unit;
      return {s, index % kv_heads, begin, std::min(rows, begin + rows_per_unit)};
    }
    index -= units_here;
  }
}

int64_t AttentionPlan::key_end(int64_t s, int64_t token) const {
  return args->batch->context_len[s] - args->batch->query_len(s) + token + 1;
}

int64_t AttentionPlan::key_begin(int64_t s, int64_t token) const {
  return args->window > 0 ? std::max<int64_t>(0, key_end(s, token) - args->window) : 0;
}

int64_t AttentionPlan::scratch_floats(int64_t head_dim) {
  const int64_t width = padded(head_dim);
  const int64_t q = kMaxRows * width, scores = kMaxRows * kTileKeys, keys = head_dim * kTileKeys;
  const int64_t values = kTileKeys * width, outputs = 2 * kMaxRows * width, stats = 4 * kMaxRows;
  return q + scores + keys + values + outputs + stats;
}

}  // namespace hearth::cpu
