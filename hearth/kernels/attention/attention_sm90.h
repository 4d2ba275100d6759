// SPDX-License-Identifier: Apache-2.0
// Which instance of the Hopper attention kernel serves a call, and how its work is split: host code without CUDA,
// shared by the kernel, the selector and the tests.
//   I1. Keys are taken in chunks of kAttentionChunk that begin at multiples of it, and chunks are merged in their
//       order: a row's bits depend on its query and its keys alone, whether one block takes all chunks of a row, each
//       of them has its own (few rows), or a block takes several rows (prompts).
#pragma once

#include <cstdint>
#include <iterator>

#include "hearth/kernels/attention/attention.h"

namespace hearth::sm90 {

inline constexpr int kAttentionThreads = 128;
// Keys that a block scores at once, one a thread.
inline constexpr int kAttentionChunk = kAttentionThreads;

// A block serves `group` query heads of one kv head; a lane holds `lane_channels` channels of V.
struct AttentionConfig {
  int group;
  int lane_channels;

  constexpr int max_head_dim() const { return 32 * lane_channels; }
};

// Ascending in both. Larger groups than 8 are served by several blocks.
inline constexpr AttentionConfig kAttentionConfigs[] = {
    {1, 2}, {2, 2}, {4, 2}, {8, 2},  // head dims to 64: fable
    {1, 4}, {2, 4}, {4, 4}, {8, 4},  // to 128: Llama, Qwen
    {1, 8}, {2, 8}, {4, 8},          // to 256
};
inline constexpr int kAttentionConfigCount = static_cast<int>(std::size(kAttentionConfigs));
inline constexpr int64_t kAttentionMaxHeadDim = 256;

// Index of the smallest config that holds the head dim, and the query heads of a kv head if one does.
// REQUIRES: head_dim <= kAttentionMaxHeadDim.
int select_attention_config(int64_t queries_per_kv_head, int64_t head_dim);

// Rows, each a query head of a token, that a block takes of a prompt; one kv head's, neighbouring tokens.
inline constexpr int kTileRows = 16;

// Tokens of a tile; fewer than two, and tiles are of no use.
inline constexpr int64_t attention_tile_tokens(int64_t queries_per_kv_head) { return kTileRows / queries_per_kv_head; }
// Tiles of a step, the empty ones among them: sequences' tiles lie one after the other.
inline constexpr int64_t attention_tiles(int64_t tile_tokens, int64_t tokens, int64_t sequences) {
  return tokens / tile_tokens + sequences;
}
// Whether tiles hold two tokens and more on average and give each multiprocessor two.
inline constexpr bool use_attention_tiles(int64_t tile_tokens, int64_t tokens, int64_t sequences, int64_t kv_heads,
                                          int64_t multiprocessors) {
  if (tile_tokens < 2) return false;
  const int64_t tiles = attention_tiles(tile_tokens, tokens, sequences);
  return 2 * tiles <= tokens && tiles * kv_heads >= 2 * multiprocessors;
}
// Whether so many blocks, one for each row, leave multiprocessors idle, so that the chunks of a row are shared out.
inline constexpr bool split_attention_chunks(int64_t blocks, int64_t multiprocessors) {
  return blocks < 8 * multiprocessors;
}

// Floats that one chunk of one query head leaves for the merge: its sum of V, its largest score, its sum.
inline constexpr int64_t attention_partial_floats(int64_t head_dim) { return head_dim + 2; }
// Chunks that a context of `context` tokens has at most.
inline constexpr int64_t attention_chunks(int64_t context) { return (context + kAttentionChunk - 1) / kAttentionChunk; }

}  // namespace hearth::sm90
