// SPDX-License-Identifier: Apache-2.0
// Decode attention in BF16: sequences with one token in the step. As many blocks as multiprocessors go over a list of
// work items, each a chunk of 256 keys of a sequence and kv head; the list comes from the lengths in device memory, so
// that grid and arguments are the same for every step of a graph. A warp brings stages of 64 keys and values (heads of
// 64: 128) through a ring of six; as many warps as a stage has 16 keys take those for all query heads of the kv head
// (mma.sync, rows 8 to 15 of A are zero), and merge their sums at the end of a chunk, in their order.
#pragma once

#include "hearth/kernels/attention/attention_bf16_sm90.cuh"

namespace hearth::sm90 {

template <int kDim>
inline constexpr int kDecodeThreads = 32 * (kDecodeWarps<kDim> + 1);

// Chunks of a sequence: those that hold a key which its token sees; none where it has not exactly one token.
struct DecodeSpan {
  int position;  // -1: not this kernel's
  int first_chunk, chunks;

  __device__ __forceinline__ DecodeSpan(int position_, int window)
      : position(position_),
        first_chunk(first_seen(position_, window) / kDecodeChunk),
        chunks(position_ < 0 ? 0 : position_ / kDecodeChunk - first_chunk + 1) {}
};
__device__ __forceinline__ int decode_position(const DeviceStep& step, int sequence) {
  const int* const start = step.query_start + sequence;
  return past_l1(start + 1) - past_l1(start) == 1 ? past_l1(step.context_len + sequence) - 1 : -1;
}

template <int kDim>
struct DecodeShared {
  static constexpr int kTiles = kDim / 64;                                            // tiles of 64 channels
  alignas(1024) std::byte stage[kDecodeStages][2][kTiles][kDecodeStage<kDim> * 128];  // keys, values
  float sum[kDecodeWarps<kDim>][kBf16MaxGroup][kDim + 8];
  float largest[kDecodeWarps<kDim>][kBf16MaxGroup], total[kDecodeWarps<kDim>][kBf16MaxGroup];
  int position[kBf16MaxSequences];
  int first_item[kBf16MaxSequences + 1];  // chunks of the sequences before
  MBarrier full[kDecodeStages];           // one arrival, with the bytes of a stage; the consumers wait
  MBarrier empty[kDecodeStages];          // an arrival of each consumer warp; the producer waits
};
// What a launch asks for: the block's shared memory begins at a multiple of 16 only.
template <int kDim>
inline constexpr int kDecodeSharedBytes = sizeof(DecodeShared<kDim>) + 1024;
static_assert(kDecodeSharedBytes<64> <= 227 * 1024 && kDecodeSharedBytes<128> <= 227 * 1024, "of a block");

struct DecodeItem {
  int sequence, kv_head, position;
  int first_chunk, end_chunk;
  int slot;  // of the partial sums; -1: the result goes to `out`
};

// Items of the step, in turn; the same list for every thread that asks.
template <int kDim>
struct DecodeList {
  const DecodeShared<kDim>& shared;
  const Bf16AttentionParams& p;
  bool split;
  int count;

  __device__ __forceinline__ DecodeList(const DecodeShared<kDim>& shared_, const Bf16AttentionParams& p_)
      : shared(shared_), p(p_) {
    const int chunks = shared.first_item[p.step.sequences];
    split = static_cast<int64_t>(chunks) * p.kv_heads <= p.slots;
    count = (split ? chunks : p.step.sequences) * p.kv_heads;
  }
  __device__ __forceinline__ DecodeItem operator[](int index) const {
    const int rank = index / p.kv_heads, kv_head = index % p.kv_heads;
    int low = split ? 0 : rank;
    if (split) {
      // first_item[low] <= rank < first_item[high]; sequences without chunks lie before the one that is found.
      for (int high = p.step.sequences; high - low > 1;) {
        const int middle = (low + high) / 2;
        (shared.first_item[middle] <= rank ? low : high) = middle;
      }
    }
    const DecodeSpan span(shared.position[low], p.window);
    if (!split) return {low, kv_head, span.position, span.first_chunk, span.first_chunk + span.chunks, -1};
    const int chunk = span.first_chunk + rank - shared.first_item[low];
    return {low, kv_head, span.position, chunk, chunk + 1, span.chunks > 1 ? index : -1};
  }
};

// The stages of an item's chunk: [begin, end).
template <int kDim>
struct DecodeStages {
  int begin, end;
  __device__ __forceinline__ DecodeStages(const DecodeItem& item, int chunk, int window)
      : begin(max(first_seen(item.position, window), chunk * kDecodeChunk) / kDecodeStage<kDim>),
        end(min(item.position, chunk * kDecodeChunk + kDecodeChunk - 1) / kDecodeStage<kDim> + 1) {}
};

// Fills the list. One warp.
template <int kDim>
__device__ __forceinline__ void plan_decode(DecodeShared<kDim>& shared, const Bf16AttentionParams& p, int lane) {
  int before = 0;
  for (int s = lane; s - lane < p.step.sequences; s += 32) {
    const int position = s < p.step.sequences ? decode_position(p.step, s) : -1;
    int sum = DecodeSpan(position, p.window).chunks;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xFFFFFFFF, sum, step);
      if (lane >= step) sum += other;
    }
    if (s < p.step.sequences) {
      shared.position[s] = position;
      shared.first_item[s + 1] = before + sum;
    }
    before += __shfl_sync(0xFFFFFFFF, sum, 31);
  }
  if (lane == 0) shared.first_item[0] = 0;
}

// The producer warp: lane i brings piece i of a stage.
template <int kDim>
__device__ __forceinline__ void produce_decode(DecodeShared<kDim>& shared, const CUtensorMap& map,
                                               const Bf16AttentionParams& p, int lane) {
  const DecodeList<kDim> list(shared, p);
  const int box = 1 << p.box_shift, pieces = kDecodeStage<kDim> >> p.box_shift;
  int filled = 0;
  for (int index = blockIdx.x; index < list.count; index += gridDim.x) {
    const DecodeItem item = list[index];
    const int first = first_seen(item.position, p.window), head = item.kv_head * p.head_units;
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      const DecodeStages<kDim> stages(item, chunk, p.window);
      for (int s = stages.begin; s < stages.end; ++s, ++filled) {
        const int slot = filled % kDecodeStages, key = s * kDecodeStage<kDim> + lane * box;
        // Blocks without a key that is seen may be gone.
        const bool wanted = lane < pieces && key <= item.position && (key >> p.block_shift) >= (first >> p.block_shift);
        const KvPlace from = wanted ? find_kv(p, item.sequence, key) : KvPlace{};
        const int count = __popc(__ballot_sync(0xFFFFFFFF, wanted));
        if (filled == 0) pdl_wait();
        shared.empty[slot].wait_or_fault(filled / kDecodeStages % 2 ^ 1);
        if (lane == 0) shared.full[slot].arrive_and_expect(count * 2 * kDim * 2 * box);
        __syncwarp();
        if (wanted) {
#pragma unroll
          for (int t = 0; t < shared.kTiles; ++t) {
            copy_tensor(shared.stage[slot][0][t] + lane * box * 128, map, 64 * t, from.token,
                        from.units + p.key_units + head, shared.full[slot]);
            copy_tensor(shared.stage[slot][1][t] + lane * box * 128, map, 64 * t, from.token,
                        from.units + p.value_units + head, shared.full[slot]);
          }
        }
        __syncwarp();
      }
    }
  }
}

// A warp's running sums over its keys of the stages of a chunk; row r = lane / 4.
template <int kDim>
struct DecodeSums {
  float largest, total;  // total: this lane's share
  float sum[kDim / 8][2];

  __device__ __forceinline__ void clear() {
    largest = -INFINITY, total = 0;
#pragma unroll
    for (auto& pair : sum) pair[0] = pair[1] = 0;
  }

  // 16 keys and values: rows `16 warp` on of both tiles. Keys outside [first, last] count nothing.
  __device__ __forceinline__ void add(const uint32_t (&q)[kDim / 16][2], uint32_t keys, uint32_t values, int warp,
                                      int lane, int key, int first, int last, float scale_log2) {
    constexpr uint32_t kTileBytes = kDecodeStage<kDim> * 128;
    float score[2][2] = {};
    {
      const uint32_t row = warp * 16 + lane / 16 * 8 + lane % 8, column = lane / 8 % 2 * 16;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        uint32_t k[4];
        load_matrices(k, keys + i / 4 * kTileBytes + swizzled_offset(row, i % 4 * 32 + column));
        mma_bf16_upper(score[0], q[i][0], q[i][1], k[0], k[1]);
        mma_bf16_upper(score[1], q[i][0], q[i][1], k[2], k[3]);
      }
    }
    const int own = key + 2 * (lane % 4);
    uint32_t seen[2];  // of the pairs of keys, as masks for V
    float most = -INFINITY;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      seen[n] = 0;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const bool visible = own + 8 * n + c >= first && own + 8 * n + c <= last;
        if (visible) seen[n] |= 0xFFFFu << 16 * c;
        score[n][c] = visible ? __fmul_rn(score[n][c], scale_log2) : -INFINITY;
        most = fmaxf(most, score[n][c]);
      }
    }
    const float now = fmaxf(largest, quad_max(most)), base = now == -INFINITY ? 0.0f : now;
    const float factor = exp2_fast(largest - base);
    largest = now;
    total = __fmul_rn(total, factor);
#pragma unroll
    for (auto& pair : score)
#pragma unroll
      for (float& s : pair) s = exp2_fast(s - base), total += s;
#pragma unroll
    for (auto& pair : sum) pair[0] *= factor, pair[1] *= factor;
    const uint32_t p0 = pack_bf16(score[0][0], score[0][1]), p1 = pack_bf16(score[1][0], score[1][1]);
    const uint32_t row = warp * 16 + lane / 8 % 2 * 8 + lane % 8, column = lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t v[4];
      load_matrices_transposed(v, values + i / 4 * kTileBytes + swizzled_offset(row, i % 4 * 32 + column));
      mma_bf16_upper(sum[2 * i], p0, p1, v[0] & seen[0], v[1] & seen[1]);
      mma_bf16_upper(sum[2 * i + 1], p0, p1, v[2] & seen[0], v[3] & seen[1]);
    }
  }

  // Of all products.
  __device__ __forceinline__ uint32_t bits() const {
    uint32_t all = __float_as_uint(total);
#pragma unroll
    for (const auto& pair : sum) all |= __float_as_uint(pair[0]);
    return all;
  }

  __device__ __forceinline__ void store(DecodeShared<kDim>& shared, int warp, int lane) const {
    const int row = lane / 4;
    const float all = quad_sum(total);
    if (lane % 4 == 0) shared.largest[warp][row] = largest, shared.total[warp][row] = all;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i)
      *reinterpret_cast<float2*>(&shared.sum[warp][row][8 * i + 2 * (lane % 4)]) = make_float2(sum[i][0], sum[i][1]);
  }
};

// One channel of one row over a chunk, from the warps' sums.
struct DecodeChunkSum {
  float largest, total, sum;

  template <int kDim>
  __device__ __forceinline__ DecodeChunkSum(const DecodeShared<kDim>& shared, int row, int channel)
      : largest(shared.largest[0][row]), total(0), sum(0) {
#pragma unroll
    for (int w = 1; w < kDecodeWarps<kDim>; ++w) largest = fmaxf(largest, shared.largest[w][row]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps<kDim>; ++w) {
      const float factor = exp2_fast(shared.largest[w][row] - largest);
      total = fmaf(shared.total[w][row], factor, total);
      sum = fmaf(shared.sum[w][row][channel], factor, sum);
    }
  }
};

// The consumer warps.
template <int kDim>
__device__ __forceinline__ void consume_decode(DecodeShared<kDim>& shared, const Bf16AttentionParams& p, int warp,
                                               int lane) {
  // In merging, a thread has one channel of some rows.
  constexpr int kThreads = 32 * kDecodeWarps<kDim>, kRowStep = kThreads / kDim, kRows = kBf16MaxGroup / kRowStep;
  constexpr int kBarrier = 1;
  const int thread = warp * 32 + lane, channel = thread % kDim, first_row = thread / kDim;
  const DecodeList<kDim> list(shared, p);
  pdl_wait();
  int taken = 0;
  for (int index = blockIdx.x; index < list.count; index += gridDim.x) {
    const DecodeItem item = list[index];
    if (item.position < 0) continue;
    const int token = p.step.query_start[item.sequence], head = item.kv_head * p.group;
    const int first = first_seen(item.position, p.window);
    uint32_t q[kDim / 16][2];
    {
      const __nv_bfloat16* const from = p.q + token * p.q_stride + (head + lane / 4) * kDim + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          q[i][n] = lane / 4 < p.group ? *reinterpret_cast<const uint32_t*>(from + 16 * i + 8 * n) : 0;
    }
    float largest[kRows], total[kRows], kept[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) largest[r] = -INFINITY, total[r] = kept[r] = 0;
    for (int chunk = item.first_chunk; chunk < item.end_chunk; ++chunk) {
      const DecodeStages<kDim> stages(item, chunk, p.window);
      DecodeSums<kDim> sums;
      sums.clear();
      for (int s = stages.begin; s < stages.end; ++s, ++taken) {
        const int slot = taken % kDecodeStages, key = s * kDecodeStage<kDim> + warp * 16;
        shared.full[slot].wait_or_fault(taken / kDecodeStages % 2);
        if (key <= item.position && key + 15 >= first)
          sums.add(q, shared_address(shared.stage[slot][0]), shared_address(shared.stage[slot][1]), warp, lane, key,
                   first, item.position, p.scale_log2);
        __syncwarp();
        if (lane == 0) shared.empty[slot].arrive_behind_loads(sums.bits());
      }
      named_barrier(kBarrier, kThreads);  // the chunk before has been read
      sums.store(shared, warp, lane);
      named_barrier(kBarrier, kThreads);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first_row + r * kRowStep;
        if (row >= p.group) continue;
        const DecodeChunkSum part(shared, row, channel);
        if (item.slot >= 0) {
          float* const to = p.partials + item.slot * p.partial_floats;
          to[row * kDim + channel] = part.sum;
          if (channel == 0) to[p.group * kDim + row] = part.largest, to[p.group * (kDim + 1) + row] = part.total;
        } else {
          const Merge2 merge(largest[r], part.largest);
          largest[r] = merge.largest;
          total[r] = merge(total[r], part.total);
          kept[r] = merge(kept[r], part.sum);
        }
      }
    }
    if (item.slot >= 0) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (const int row = first_row + r * kRowStep; row < p.group)
        p.out[token * p.out_stride + (head + row) * kDim + channel] = __float2bfloat16_rn(__fdiv_rn(kept[r], total[r]));
  }
}

// Grid: as many blocks as multiprocessors.
template <int kDim>
__global__ void __launch_bounds__(kDecodeThreads<kDim>, 1)
    attention_bf16_decode_kernel(const __grid_constant__ CUtensorMap map, const Bf16AttentionParams p) {
  extern __shared__ std::byte raw[];
  auto& shared = *reinterpret_cast<DecodeShared<kDim>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (MBarrier& barrier : shared.full) barrier.init(1);
    for (MBarrier& barrier : shared.empty) barrier.init(kDecodeWarps<kDim>);
    fence_barrier_init();
    prefetch_tensor_map(map);
  }
  pdl_launch_next();
  // The step's arrays were there before its first kernel; queries, keys and values wait for the kernels before.
  if (warp == kDecodeWarps<kDim>) plan_decode(shared, p, lane);
  __syncthreads();
  if (warp == kDecodeWarps<kDim>) {
    produce_decode(shared, map, p, lane);
  } else {
    consume_decode(shared, p, warp, lane);
  }
}

// Merges the chunks of a sequence's head: grid (sequences, heads), a thread for each channel.
template <int kDim>
__global__ void __launch_bounds__(kDim) attention_bf16_merge_kernel(const Bf16AttentionParams p) {
  __shared__ int before[kDim / 32], all[kDim / 32];
  const int sequence = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
  pdl_launch_next();
  const DecodeSpan span(decode_position(p.step, sequence), p.window);
  if (span.chunks <= 1) return pdl_wait();
  int mine_before = 0, mine = 0;
  for (int s = thread; s < p.step.sequences; s += kDim) {
    const int chunks = DecodeSpan(decode_position(p.step, s), p.window).chunks;
    mine += chunks;
    if (s < sequence) mine_before += chunks;
  }
  mine_before = __reduce_add_sync(0xFFFFFFFF, mine_before);
  mine = __reduce_add_sync(0xFFFFFFFF, mine);
  if (thread % 32 == 0) before[thread / 32] = mine_before, all[thread / 32] = mine;
  __syncthreads();
  int first_rank = 0, chunks = 0;
  for (int w = 0; w < kDim / 32; ++w) first_rank += before[w], chunks += all[w];
  pdl_wait();
  if (static_cast<int64_t>(chunks) * p.kv_heads > p.slots) return;  // there was no split

  const int kv_head = head / p.group, row = head % p.group;
  const int64_t floats = p.partial_floats;
  const float* from = p.partials + (int64_t{first_rank} * p.kv_heads + kv_head) * floats;
  float largest = -INFINITY, total = 0, kept = 0;
#pragma unroll 4
  for (int chunk = 0; chunk < span.chunks; ++chunk, from += p.kv_heads * floats) {
    const Merge2 merge(largest, from[p.group * kDim + row]);
    largest = merge.largest;
    total = merge(total, from[p.group * (kDim + 1) + row]);
    kept = merge(kept, from[row * kDim + thread]);
  }
  const int token = p.step.query_start[sequence];
  p.out[token * p.out_stride + head * kDim + thread] = __float2bfloat16_rn(__fdiv_rn(kept, total));
}

}  // namespace hearth::sm90
