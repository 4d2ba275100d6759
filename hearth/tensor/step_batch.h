// SPDX-License-Identifier: Apache-2.0
// StepBatch: what one forward step works on, as every op and every backend sees it. Ragged: the T tokens
// of the S sequences lie one sequence after the other; prefill, chunk and decode differ only in how many
// tokens of a sequence are in the step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace hearth {

// What the step before sampled where this one runs: ids that the host need not know yet. Token -1 - r of a step is
// that of row r.
struct SampledIds {
  const int32_t* first = nullptr;  // where the step runs
  int64_t stride = 0;              // from one row to the next
  int64_t rows = 0;

  // Where the host may read them. A row without an id (its logits were bad) has 0.
  int32_t id_of(int32_t token) const { return token >= 0 ? token : std::max(0, first[(-1 - token) * stride]); }
};

struct StepBatch {
  std::span<const int32_t> tokens;       // [T] token ids, or names of `sampled`
  std::span<const int32_t> positions;    // [T] position of each token in its sequence
  std::span<const int32_t> query_start;  // [S + 1] tokens of sequence s are [query_start[s], query_start[s + 1])
  std::span<const int32_t> context_len;  // [S] tokens of the sequence in the KV cache after this step
  std::span<const int64_t> block_table;  // [S, block_table_stride] byte offsets of the sequence's KV blocks
  int64_t block_table_stride = 0;
  std::span<const int32_t> logit_rows;  // [R] ascending token rows whose logits are wanted
  std::span<const int32_t> adapter;     // [S] adapter of the sequence, -1 for none; empty: none anywhere
  // No context_len is larger, now and whenever the same launches run again over new contents of these arrays: what an
  // op plans its grid and its scratch for. 0: the largest context_len.
  int64_t max_context = 0;
  SampledIds sampled;

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_sequences() const { return static_cast<int64_t>(context_len.size()); }
  int64_t planned_context() const {
    if (max_context > 0 || context_len.empty()) return max_context;
    return *std::max_element(context_len.begin(), context_len.end());
  }

  // The query token `i` of sequence s sits at position context_len[s] - query_len(s) + i.
  int64_t query_len(int64_t s) const { return query_start[s + 1] - query_start[s]; }
  std::span<const int64_t> blocks(int64_t s) const {
    return block_table.subspan(static_cast<size_t>(s * block_table_stride), static_cast<size_t>(block_table_stride));
  }
};

}  // namespace hearth
