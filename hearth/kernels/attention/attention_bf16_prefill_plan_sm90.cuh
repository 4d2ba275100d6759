// SPDX-License-Identifier: Apache-2.0
// The work of BF16 prefill: tiles of 128 rows of one kv head, and the order in which blocks take them. Row R of a
// sequence is head R % group of token R / group. A sequence's tiles lie together, section by section of its kv heads,
// a section being what L2 holds; in a section those that see most keys come first, so that short ones fill the gaps at
// the end. Blocks take the next tile from a counter: which block computes a tile changes nothing about its bits.
#pragma once

#include "hearth/kernels/attention/attention_bf16_sm90.cuh"

namespace hearth::sm90 {

// Keys and values of a section: half of an H100's L2.
inline constexpr int64_t kPrefillSectionBytes = int64_t{24} << 20;

struct PrefillPlace {
  int sequence, kv_head;
  int first_token;      // of the sequence, in the step
  int first_position;   // of the sequence's first token in the step
  int first_row, rows;  // of the sequence; rows 0: there is no more work
  int context;
  int first_key, last_key;    // that any row sees
  int first_tile, last_tile;  // of keys
};

// Tiles of rows of a sequence; none where it has one token, which is decode's.
__host__ __device__ constexpr int prefill_tiles(int tokens, int group) {
  return tokens > 1 ? (tokens * group + kPrefillRows - 1) / kPrefillRows : 0;
}

struct PrefillPlan {
  int first_tile[kBf16MaxSequences + 1];  // tiles of a kv head in the sequences before
  int items;

  // One warp; then a barrier.
  __device__ __forceinline__ void fill(const Bf16AttentionParams& p, int lane) {
    int before = 0;
    for (int s = lane; s - lane < p.step.sequences; s += 32) {
      const int* const start = p.step.query_start + s;
      int sum = s < p.step.sequences ? prefill_tiles(start[1] - start[0], p.group) : 0;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFF, sum, step);
        if (lane >= step) sum += other;
      }
      if (s < p.step.sequences) first_tile[s + 1] = before + sum;
      before += __shfl_sync(0xFFFFFFFF, sum, 31);
    }
    if (lane == 0) first_tile[0] = 0, items = before * p.kv_heads;
  }

  // REQUIRES: index < items.
  template <int kDim>
  __device__ __forceinline__ PrefillPlace place(const Bf16AttentionParams& p, int index) const {
    int low = 0;
    // first_tile[low] * kv_heads <= index < first_tile[high] * kv_heads
    for (int high = p.step.sequences; high - low > 1;) {
      const int middle = (low + high) / 2;
      (first_tile[middle] * p.kv_heads <= index ? low : high) = middle;
    }
    PrefillPlace at;
    at.sequence = low;
    at.first_token = p.step.query_start[low];
    const int tokens = p.step.query_start[low + 1] - at.first_token;
    at.context = p.step.context_len[low];
    at.first_position = at.context - tokens;

    const int tiles = first_tile[low + 1] - first_tile[low], own = index - first_tile[low] * p.kv_heads;
    const int64_t head_bytes = int64_t{at.context} * kDim * 4;
    const int heads = max(1, min(p.kv_heads, static_cast<int>(kPrefillSectionBytes / head_bytes)));
    const int first_head = own / (heads * tiles) * heads, here = min(heads, p.kv_heads - first_head);
    const int rank = own - first_head * tiles;
    at.kv_head = first_head + rank % here;
    at.first_row = (tiles - 1 - rank / here) * kPrefillRows;
    at.rows = min(kPrefillRows, tokens * p.group - at.first_row);
    at.first_key = first_seen(at.first_position + at.first_row / p.group, p.window);
    at.last_key = at.first_position + (at.first_row + at.rows - 1) / p.group;
    at.first_tile = at.first_key / kPrefillKeys;
    at.last_tile = at.last_key / kPrefillKeys;
    return at;
  }

  // An item that no block has; the first of block b is b. A block asks once for each item that it takes, so that the
  // counter is zero again when all have been.
  __device__ __forceinline__ int next(uint32_t* counter) const {
    return static_cast<int>(gridDim.x + atomicInc(counter, static_cast<unsigned>(items - 1)));
  }
};

// Walks over a sequence's rows, `step` at a time.
struct PrefillRowWalk {
  const int group, token_step, head_step;
  int token, head;  // of the sequence, of the kv head

  __device__ __forceinline__ PrefillRowWalk(int row, int step, int group_)
      : group(group_), token_step(step / group_), head_step(step % group_), token(row / group_), head(row % group_) {}
  __device__ __forceinline__ void next() {
    token += token_step, head += head_step;
    if (head >= group) head -= group, ++token;
  }
};

}  // namespace hearth::sm90
