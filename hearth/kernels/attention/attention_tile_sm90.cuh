// SPDX-License-Identifier: Apache-2.0
// The attention kernel for prompts on CUDA cores: a block takes up to kTileRows rows, the query heads of one kv head
// for some neighbouring tokens of one sequence, so that a key and a value are read once for all of them.
//   I1. A row's bits are attention_kernel's: the same products in the same order, chunks and quarters of chunks too.
//       Keys that a row does not see add zeros to it, if their values are finite.
#pragma once

#include <cmath>

#include "hearth/kernels/attention/attention_sm90.cuh"

namespace hearth::sm90 {

struct TilePlace {
  int sequence;
  int first_token;  // of the batch
  int tokens;       // 0: nothing to do
};

// Which tokens tile `index` has, of at most `tile_tokens` each. Sequence s has the tiles from query_start[s] /
// tile_tokens + s on: enough, and some of them empty.
__device__ __forceinline__ TilePlace find_tile(const DeviceStep& step, int index, int tile_tokens) {
  int low = 0, high = step.sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (step.query_start[middle] / tile_tokens + middle <= index ? low : high) = middle;
  }
  const int begin = step.query_start[low], end = step.query_start[low + 1];
  const int first = begin + (index - begin / tile_tokens - low) * tile_tokens;
  return {low, first, max(0, min(tile_tokens, end - first))};
}

// Grid: (tiles, kv heads). kDim: 64, 128 or 256, at least head_dim.
template <int kDim, class T, class Format>
__global__ void __launch_bounds__(kAttentionThreads, 3) attention_tile_kernel(AttentionParams<T> p, int tile_tokens) {
  constexpr int kRows = kTileRows, kWarps = kAttentionThreads / 32;
  // In the sum of values a thread has two channels and some of the rows.
  constexpr int kPairs = kDim / 2, kOwnRows = kRows * kPairs / kAttentionThreads;
  static_assert(kOwnRows % 4 == 0, "rows in whole vectors");
  struct Shared {
    alignas(16) float q[kRows][kDim];
    alignas(16) float weight[kAttentionChunk][kRows];
    float largest[kWarps][kRows], sum[kWarps][kRows];
    float kept[kRows], arrived[kRows];  // SoftmaxMerge's factors of the chunk; the second is 0 where no key is seen
    float total[kRows];
    int position[kRows];  // -1: no such row
    int64_t offset[kAttentionChunk];
    typename Format::Steps value_steps[kAttentionChunk];
  };
  __shared__ Shared shared;
  static_assert(sizeof(Shared) <= 48 * 1024, "static shared memory");

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int kv_head = blockIdx.y, heads = p.group, head = kv_head * heads;
  pdl_wait();
  pdl_launch_next();
  // Late tiles have long contexts: they go first.
  const TilePlace tile = find_tile(p.step, static_cast<int>(gridDim.x - 1 - blockIdx.x), tile_tokens);
  if (tile.tokens == 0) return;
  const int rows = tile.tokens * heads;
  const int first_position =
      p.step.context_len[tile.sequence] - p.step.query_start[tile.sequence + 1] + tile.first_token;
  const int last_position = first_position + tile.tokens - 1;

  if (thread < kRows) {
    shared.position[thread] = thread < rows ? first_position + thread / heads : -1;
    shared.total[thread] = 0;
  }
  for (int e = thread; e < kRows * kDim; e += kAttentionThreads) {
    const int row = e / kDim, i = e % kDim;
    float q = 0;
    if (row < rows && i < p.head_dim) {
      q = widen(p.q[(tile.first_token + row / heads) * p.q_stride + int64_t{head + row % heads} * p.head_dim + i]) *
          p.scale;
      if (Format::kTransforms && p.kv.channel_scale != nullptr)
        q = __fdiv_rn(q, p.kv.channel_scale[kv_head * p.kv.channel_stride + i]);
    }
    shared.q[row][i] = q;
  }
  if (Format::kTransforms && p.rotate_q) {
    __syncthreads();
    hadamard_rotate(&shared.q[0][0], p.head_dim, kRows * kDim, thread, kAttentionThreads, [] { __syncthreads(); });
  }
  const float k_scale = p.kv.k_scale[kv_head], v_scale = p.kv.v_scale[kv_head];
  const int channel = 2 * (thread % kPairs), own_row = thread / kPairs * kOwnRows;

  float row_largest = -INFINITY;  // of row `thread`
  float kept[kOwnRows][2];
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r) kept[r][0] = kept[r][1] = 0;

  const int first = first_key(first_position, p.window);
  for (int chunk = first / kAttentionChunk; chunk <= last_position / kAttentionChunk; ++chunk) {
    const int key = chunk * kAttentionChunk + thread;
    const bool stored = key >= first && key <= last_position;
    const HeadPlace at = stored ? find_head(p.step, p.kv, {tile.sequence, key}, kv_head) : HeadPlace{};
    __syncthreads();  // q is there; the chunk before has been read
    shared.offset[thread] = at.codes;
    float score[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) score[r] = 0;
    if (stored) {
      shared.value_steps[thread] = Format::steps(p.kv, p.kv.value + at.steps, v_scale);
      const auto steps = Format::steps(p.kv, p.kv.key + at.steps, k_scale);
      if (Format::kWide <= 8 || p.head_dim % Format::kWide == 0) {
        add_scores<Format, Format::kWide>(p.kv.key + at.codes, steps, p.head_dim, shared.q, score);
      } else {
        add_scores<Format, 8>(p.kv.key + at.codes, steps, p.head_dim, shared.q, score);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int position = shared.position[r];
      if (key > position || key < first_key(position, p.window)) score[r] = -INFINITY;
      const float most = warp_max(score[r]);
      if (lane == 0) shared.largest[warp][r] = most;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float largest = shared.largest[0][r];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w][r]);
      score[r] = largest == -INFINITY ? 0.0f : expf(score[r] - largest);
      shared.weight[thread][r] = score[r];
      const float sum = warp_sum(score[r]);
      if (lane == 0) shared.sum[warp][r] = sum;
    }
    __syncthreads();
    if (thread < kRows) {
      float largest = shared.largest[0][thread], sum = shared.sum[0][thread];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        largest = fmaxf(largest, shared.largest[w][thread]);
        sum += shared.sum[w][thread];
      }
      shared.kept[thread] = 1, shared.arrived[thread] = 0;
      if (largest != -INFINITY) {
        const SoftmaxMerge merge(row_largest, largest);
        row_largest = merge.largest;
        shared.total[thread] = merge(shared.total[thread], sum);
        shared.kept[thread] = merge.kept, shared.arrived[thread] = merge.arrived;
      }
    }

    // The values: quarters of the chunk as attention_kernel's warps have them, each in ascending order.
    const int chunk_begin = chunk * kAttentionChunk;
    const int begin = max(first - chunk_begin, 0), end = min(last_position - chunk_begin + 1, kAttentionChunk);
    float sum[kOwnRows][2];
    if (channel < p.head_dim) {
#pragma unroll
      for (int quarter = 0; quarter < kWarps; ++quarter) {
        float part[kOwnRows][2];
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r) part[r][0] = part[r][1] = 0;
        for (int j = max(begin, quarter * 32); j < min(end, quarter * 32 + 32); ++j) {
          float v[2];
          Format::template read<2>(p.kv.value + shared.offset[j] + Format::bytes(channel), shared.value_steps[j], v);
#pragma unroll
          for (int r = 0; r < kOwnRows; ++r) {
            const float weight = shared.weight[j][own_row + r];
            part[r][0] = fmaf(weight, v[0], part[r][0]);
            part[r][1] = fmaf(weight, v[1], part[r][1]);
          }
        }
#pragma unroll
        for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
          for (int c = 0; c < 2; ++c) sum[r][c] = quarter == 0 ? part[r][c] : sum[r][c] + part[r][c];
      }
    }
    __syncthreads();  // the factors
    if (channel < p.head_dim) {
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const float keep = shared.kept[own_row + r], arrive = shared.arrived[own_row + r];
#pragma unroll
        for (int c = 0; c < 2; ++c) kept[r][c] = fmaf(kept[r][c], keep, __fmul_rn(sum[r][c], arrive));
      }
    }
  }
  if (channel >= p.head_dim) return;
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
    if (const int row = own_row + r; row < rows) {
      T* const out = p.out + (tile.first_token + row / heads) * p.out_stride + int64_t{head + row % heads} * p.head_dim;
#pragma unroll
      for (int c = 0; c < 2; ++c) out[channel + c] = narrow<T>(__fdiv_rn(kept[r][c], shared.total[row]));
    }
}

}  // namespace hearth::sm90
