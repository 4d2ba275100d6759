// SPDX-License-Identifier: Apache-2.0
// The attention kernels for Hopper, on CUDA cores. A block takes one token and the query heads of one kv head, and
// goes over the keys in chunks of 128: a thread scores one key for all its heads, then the block turns scores into
// weights, then a warp sums 32 values, a lane its channels. Chunks are merged by rescaling to the larger maximum
// (Milakov and Gimelshein, 2018). With `partials` each chunk has a block of its own, and a second kernel merges. Coded
// keys and values become f32 in registers (kv_read.cuh); the query is transformed before it meets them.
#pragma once

#include <cmath>
#include <cstdint>

#include "hearth/kernels/attention/attention_sm90.h"
#include "hearth/kernels/sm90/hadamard.cuh"
#include "hearth/kernels/sm90/kv_read.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/step.cuh"
#include "hearth/kernels/sm90/values.cuh"

namespace hearth::sm90 {

template <class T>
struct AttentionParams {
  const T* q;
  T* out;
  int64_t q_stride, out_stride;
  DeviceStep step;
  DeviceKv kv;
  float* partials;  // [tokens, heads, chunks, partial_floats], or null: a block takes all chunks
  int64_t partial_floats;
  int heads, kv_heads, head_dim;
  int group;         // query heads of a kv head
  int group_blocks;  // blocks that share them
  int chunks;        // of the longest context
  int window;        // 0: all
  bool alone;        // grid and scratch are of sequences, and those with another number of tokens than 1 are left out
  bool rotate_q;     // QueryTransform::kHadamard
  float scale;
};

// Two sums of V over different keys become one. The first: -inf, 0, 0.
struct SoftmaxMerge {
  float largest;        // of both
  float kept, arrived;  // factors of the running and the new sums

  __device__ __forceinline__ SoftmaxMerge(float running, float chunk)
      : largest(fmaxf(running, chunk)), kept(expf(running - largest)), arrived(expf(chunk - largest)) {}
  __device__ __forceinline__ float operator()(float running, float chunk) const {
    return fmaf(running, kept, __fmul_rn(chunk, arrived));
  }
};

// The chunks that a token at `position` looks at: [first / chunk, position / chunk].
__device__ __forceinline__ int first_key(int position, int window) {
  return window > 0 ? max(0, position - window + 1) : 0;
}

// The token of block `index` of the grid, -1 where it is left out.
template <class T>
__device__ __forceinline__ int find_row(const AttentionParams<T>& p, int index) {
  if (!p.alone) return index;
  const int token = p.step.query_start[index];
  return p.step.query_start[index + 1] - token == 1 ? token : -1;
}

// Adds to score[g] the product of a key and row g of q, channels in ascending order, kVector at once.
template <class Format, int kVector, int kGroup, int kDim>
__device__ __forceinline__ void add_scores(const std::byte* key, typename Format::Steps steps, int head_dim,
                                           const float (&q)[kGroup][kDim], float (&score)[kGroup]) {
  for (int i = 0; i < head_dim; i += kVector) {
    float k[kVector];
    Format::template read<kVector>(key + Format::bytes(i), steps, k);
#pragma unroll
    for (int g = 0; g < kGroup; ++g)
#pragma unroll
      for (int c = 0; c < kVector; ++c) score[g] = fmaf(q[g][i + c], k[c], score[g]);
  }
}

// Three blocks a multiprocessor or more: told nothing, ptxas 13.0 spills a register of eight instances to save others.
template <int kIndex, class T, class Format>
__global__ void __launch_bounds__(kAttentionThreads, 3) attention_kernel(AttentionParams<T> p) {
  constexpr AttentionConfig kConfig = kAttentionConfigs[kIndex];
  constexpr int kGroup = kConfig.group, kLane = kConfig.lane_channels, kDim = 32 * kLane;
  constexpr int kWarps = kAttentionThreads / 32;
  // Elements of the merged sums that a thread keeps: element e of head e / kDim at channel e % kDim.
  constexpr int kKept = (kGroup * kDim + kAttentionThreads - 1) / kAttentionThreads;
  struct Shared {
    float q[kGroup][kDim];
    float sum[kWarps][kGroup][kDim];
    float weight[kAttentionChunk][kGroup];
    float reduce[kWarps][kGroup];
    int64_t offset[kAttentionChunk];
    typename Format::Steps value_steps[kAttentionChunk];
  };
  __shared__ Shared shared;
  static_assert(sizeof(Shared) <= 48 * 1024, "static shared memory");

  const int index = blockIdx.x, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int kv_head = blockIdx.y / p.group_blocks;
  const int group_begin = static_cast<int>(blockIdx.y) % p.group_blocks * kGroup;
  const int head = kv_head * p.group + group_begin, heads = min(kGroup, p.group - group_begin);
  pdl_launch_next();
  pdl_wait();
  const int token = find_row(p, index);
  if (token < 0) return;
  const TokenPlace place = find_token(p.step, token);
  const int first = first_key(place.position, p.window);
  int chunk = first / kAttentionChunk, last_chunk = place.position / kAttentionChunk;
  if (p.partials != nullptr) {
    const int own = blockIdx.z;
    if (own < chunk || own > last_chunk) return;
    chunk = last_chunk = own;
  }
  for (int e = thread; e < kGroup * kDim; e += kAttentionThreads) {
    const int g = e / kDim, i = e % kDim;
    float q = 0;
    if (g < heads && i < p.head_dim) {
      q = widen(p.q[token * p.q_stride + int64_t{head + g} * p.head_dim + i]) * p.scale;
      if (Format::kTransforms && p.kv.channel_scale != nullptr)
        q = __fdiv_rn(q, p.kv.channel_scale[kv_head * p.kv.channel_stride + i]);
    }
    shared.q[g][i] = q;
  }
  if (Format::kTransforms && p.rotate_q) {
    __syncthreads();
    // Both head_dim and kDim are powers of two: the padding is whole vectors of zeros.
    hadamard_rotate(&shared.q[0][0], p.head_dim, kGroup * kDim, thread, kAttentionThreads, [] { __syncthreads(); });
  }
  const float k_scale = p.kv.k_scale[kv_head], v_scale = p.kv.v_scale[kv_head];

  float largest[kGroup], total[kGroup], kept[kKept];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) largest[g] = -INFINITY, total[g] = 0;
#pragma unroll
  for (int n = 0; n < kKept; ++n) kept[n] = 0;

  for (; chunk <= last_chunk; ++chunk) {
    const int key = chunk * kAttentionChunk + thread;
    const bool seen = key >= first && key <= place.position;
    const HeadPlace at = seen ? find_head(p.step, p.kv, {place.sequence, key}, kv_head) : HeadPlace{};
    __syncthreads();  // q is there; the chunk before has been read
    shared.offset[thread] = at.codes;
    if (seen) shared.value_steps[thread] = Format::steps(p.kv, p.kv.value + at.steps, v_scale);
    float score[kGroup];
#pragma unroll
    for (int g = 0; g < kGroup; ++g) score[g] = seen ? 0.0f : -INFINITY;
    if (seen) {
      const auto steps = Format::steps(p.kv, p.kv.key + at.steps, k_scale);
      if (Format::kWide <= 8 || p.head_dim % Format::kWide == 0) {
        add_scores<Format, Format::kWide>(p.kv.key + at.codes, steps, p.head_dim, shared.q, score);
      } else {
        add_scores<Format, 8>(p.kv.key + at.codes, steps, p.head_dim, shared.q, score);
      }
    }

    // The chunk's largest score and its sum of weights, the same in all threads.
    float chunk_largest[kGroup], chunk_total[kGroup];
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const float most = warp_max(score[g]);
      if (lane == 0) shared.reduce[warp][g] = most;
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      chunk_largest[g] = shared.reduce[0][g];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) chunk_largest[g] = fmaxf(chunk_largest[g], shared.reduce[w][g]);
      score[g] = expf(score[g] - chunk_largest[g]);
      shared.weight[thread][g] = score[g];
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const float sum = warp_sum(score[g]);
      if (lane == 0) shared.reduce[warp][g] = sum;
    }

    // A warp's 32 values, ascending; keys that are not seen have weight 0 and are not read.
    float sum[kGroup][kLane];
#pragma unroll
    for (int g = 0; g < kGroup; ++g)
#pragma unroll
      for (int c = 0; c < kLane; ++c) sum[g][c] = 0;
    const int chunk_begin = chunk * kAttentionChunk;
    const int begin = max(first - chunk_begin, warp * 32), end = min(place.position - chunk_begin + 1, warp * 32 + 32);
    if (lane * kLane < p.head_dim) {
      for (int j = begin; j < end; ++j) {
        float v[kLane];
        Format::template read<kLane>(p.kv.value + shared.offset[j] + Format::bytes(lane * kLane), shared.value_steps[j],
                                     v);
#pragma unroll
        for (int g = 0; g < kGroup; ++g)
#pragma unroll
          for (int c = 0; c < kLane; ++c) sum[g][c] = fmaf(shared.weight[j][g], v[c], sum[g][c]);
      }
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g)
#pragma unroll
      for (int c = 0; c < kLane; ++c) shared.sum[warp][g][lane * kLane + c] = sum[g][c];
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      chunk_total[g] = shared.reduce[0][g];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) chunk_total[g] += shared.reduce[w][g];
    }
    const auto chunk_sum = [&](int e) {
      float x = shared.sum[0][e / kDim][e % kDim];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) x += shared.sum[w][e / kDim][e % kDim];
      return x;
    };

    if (p.partials != nullptr) {
      const int64_t floats = p.partial_floats;
      float* const to = p.partials + ((int64_t{index} * p.heads + head) * p.chunks + chunk) * floats;
      for (int e = thread; e < heads * kDim; e += kAttentionThreads)
        if (const int i = e % kDim; i < p.head_dim) to[e / kDim * p.chunks * floats + i] = chunk_sum(e);
#pragma unroll
      for (int g = 0; g < kGroup; ++g)
        if (thread == g && g < heads) {
          to[g * p.chunks * floats + p.head_dim] = chunk_largest[g];
          to[g * p.chunks * floats + p.head_dim + 1] = chunk_total[g];
        }
      return;
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const SoftmaxMerge merge(largest[g], chunk_largest[g]);
      largest[g] = merge.largest;
      total[g] = merge(total[g], chunk_total[g]);
#pragma unroll
      for (int n = 0; n < kKept; ++n)
        if (const int e = n * kAttentionThreads + thread; e / kDim == g) kept[n] = merge(kept[n], chunk_sum(e));
    }
  }
#pragma unroll
  for (int g = 0; g < kGroup; ++g)
#pragma unroll
    for (int n = 0; n < kKept; ++n) {
      const int e = n * kAttentionThreads + thread, i = e % kDim;
      if (e / kDim == g && g < heads && i < p.head_dim)
        p.out[token * p.out_stride + int64_t{head + g} * p.head_dim + i] = narrow<T>(__fdiv_rn(kept[n], total[g]));
    }
}

// Merges the chunks of a token's head: grid (tokens, heads), a thread per channel and round.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads) attention_merge_kernel(AttentionParams<T> p) {
  const int index = blockIdx.x, head = blockIdx.y;
  pdl_launch_next();
  pdl_wait();
  const int token = find_row(p, index);
  if (token < 0) return;
  const TokenPlace place = find_token(p.step, token);
  const int64_t floats = p.partial_floats;
  const float* const from = p.partials + (int64_t{index} * p.heads + head) * p.chunks * floats;
  const int begin = first_key(place.position, p.window) / kAttentionChunk, last = place.position / kAttentionChunk;
  for (int i = threadIdx.x; i < p.head_dim; i += kAttentionThreads) {
    float largest = -INFINITY, total = 0, sum = 0;
    for (int chunk = begin; chunk <= last; ++chunk) {
      const float* const part = from + chunk * floats;
      const SoftmaxMerge merge(largest, part[p.head_dim]);
      largest = merge.largest;
      total = merge(total, part[p.head_dim + 1]);
      sum = merge(sum, part[i]);
    }
    p.out[token * p.out_stride + int64_t{head} * p.head_dim + i] = narrow<T>(__fdiv_rn(sum, total));
  }
}

}  // namespace hearth::sm90
