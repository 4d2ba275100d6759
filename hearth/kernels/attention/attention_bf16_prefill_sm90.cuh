// SPDX-License-Identifier: Apache-2.0
// Prefill attention in BF16, after FlashAttention-3 (Shah et al., 2024, sections 3.1 and 3.2): sequences with several
// tokens in the step. A block takes 128 rows, the query heads of one kv head for neighbouring tokens of a sequence, row
// R of a sequence being head R % group of token R / group. One warp brings tiles of 128 keys and of 128 values through
// two rings; two warpgroups have 64 rows each, and score the next tile (wgmma, operands from shared memory) while they
// weigh the values of the last one (weights from registers), with the softmax in between.
#pragma once

#include "hearth/kernels/attention/attention_bf16_sm90.cuh"

namespace hearth::sm90 {

inline constexpr int kPrefillThreads = 3 * 128;

template <int kDim>
struct PrefillShared {
  static constexpr int kTiles = kDim / 64;                // tiles of 64 channels
  alignas(1024) std::byte q[kTiles][kPrefillRows * 128];  // at the end: out
  alignas(1024) std::byte key[kPrefillStages][kTiles][kPrefillKeys * 128];
  alignas(1024) std::byte value[kPrefillStages][kTiles][kPrefillKeys * 128];
  // Full: one arrival, with the bytes of a tile; the consumers wait. Empty: an arrival of each of 8 consumer warps; the
  // producer waits.
  MBarrier key_full[kPrefillStages], key_empty[kPrefillStages];
  MBarrier value_full[kPrefillStages], value_empty[kPrefillStages];
};
template <int kDim>
inline constexpr int kPrefillSharedBytes = sizeof(PrefillShared<kDim>) + 1024;
static_assert(kPrefillSharedBytes<128> <= 227 * 1024, "shared memory of a block");

// Tiles of rows that a step has at most: those of sequence s begin at query_start[s] * group / kPrefillRows + s.
inline constexpr int64_t prefill_tiles(int64_t tokens, int64_t sequences, int64_t group) {
  return tokens * group / kPrefillRows + sequences;
}

struct PrefillPlace {
  int sequence, kv_head;
  int first_token;      // of the sequence, in the step
  int first_position;   // of the sequence's first token in the step
  int first_row, rows;  // of the sequence; rows 0: nothing to do
  int context;
  int first_key, last_key;    // that any row sees
  int first_tile, last_tile;  // of keys

  __device__ __forceinline__ PrefillPlace(const Bf16AttentionParams& p, int index) {
    const DeviceStep& step = p.step;
    // Late tiles of a sequence see most keys: they go first.
    const int tile = static_cast<int>(gridDim.x) / p.kv_heads - 1 - index / p.kv_heads;
    kv_head = index % p.kv_heads;
    const auto begin = [&](int s) { return step.query_start[s] * p.group / kPrefillRows + s; };
    int low = 0;
    for (int high = step.sequences; high - low > 1;) {
      const int middle = (low + high) / 2;
      (begin(middle) <= tile ? low : high) = middle;
    }
    sequence = low;
    first_token = step.query_start[low];
    const int tokens = step.query_start[low + 1] - first_token;
    first_row = (tile - begin(low)) * kPrefillRows;
    rows = tokens > 1 ? max(0, min(kPrefillRows, tokens * p.group - first_row)) : 0;
    context = step.context_len[low];
    first_position = context - tokens;
    first_key = first_seen(first_position + first_row / p.group, p.window);
    last_key = first_position + (first_row + rows - 1) / p.group;
    first_tile = first_key / kPrefillKeys;
    last_tile = last_key / kPrefillKeys;
  }
};

// One warp: lane i brings piece i of a tile, the last tile of keys first.
template <int kDim>
__device__ __forceinline__ void produce_prefill(PrefillShared<kDim>& shared, const CUtensorMap& map,
                                                const Bf16AttentionParams& p, const PrefillPlace& place, int lane) {
  const int box = 1 << p.box_shift, pieces = kPrefillKeys >> p.box_shift, head = place.kv_head * p.head_units;
  for (int tile = place.last_tile, filled = 0; tile >= place.first_tile; --tile, ++filled) {
    const int slot = filled % kPrefillStages, parity = filled / kPrefillStages % 2 ^ 1;
    const int key = tile * kPrefillKeys + lane * box;
    // Blocks whose keys no row sees may be gone; those behind the context do not exist.
    const bool wanted =
        lane < pieces && key < place.context && (key >> p.block_shift) >= (place.first_key >> p.block_shift);
    const KvPlace from = wanted ? find_kv(p, place.sequence, key) : KvPlace{};
    const int bytes = __popc(__ballot_sync(0xFFFFFFFF, wanted)) * kDim * 2 * box;
    shared.key_empty[slot].wait(parity);
    if (lane == 0) shared.key_full[slot].arrive_and_expect(bytes);
    __syncwarp();
    if (wanted) {
#pragma unroll
      for (int t = 0; t < kDim / 64; ++t)
        copy_tensor(shared.key[slot][t] + lane * box * 128, map, 64 * t, from.token, from.units + p.key_units + head,
                    shared.key_full[slot]);
    }
    __syncwarp();
    shared.value_empty[slot].wait(parity);
    if (lane == 0) shared.value_full[slot].arrive_and_expect(bytes);
    __syncwarp();
    if (wanted) {
#pragma unroll
      for (int t = 0; t < kDim / 64; ++t)
        copy_tensor(shared.value[slot][t] + lane * box * 128, map, 64 * t, from.token,
                    from.units + p.value_units + head, shared.value_full[slot]);
    }
    __syncwarp();
  }
}

// A warpgroup's 64 rows. A thread has two of them (wgmma.cuh), r = 0 and 1, and a quarter of their columns.
template <int kDim>
struct PrefillRowsOf {
  PrefillShared<kDim>& shared;
  const Bf16AttentionParams& p;
  const PrefillPlace& place;
  const int group;   // the warpgroup's index, 0 or 1
  const int thread;  // of the warpgroup
  float score[kPrefillKeys / 2];
  float sum[kDim / 2];
  uint32_t weight[kPrefillKeys / 16][4];
  float largest[2], total[2], factor[2];  // total: this thread's share
  int position[2], first[2];              // the keys that a row sees; -1 and 0 where there is no such row

  __device__ __forceinline__ PrefillRowsOf(PrefillShared<kDim>& shared_, const Bf16AttentionParams& p_,
                                           const PrefillPlace& place_, int group_, int thread_)
      : shared(shared_), p(p_), place(place_), group(group_), thread(thread_) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = group * 64 + thread / 32 * 16 + thread % 32 / 4 + 8 * r;
      position[r] = row < place.rows ? place.first_position + (place.first_row + row) / p.group : -1;
      first[r] = first_seen(position[r], p.window);
      largest[r] = -INFINITY, total[r] = 0, factor[r] = 1;
    }
#pragma unroll
    for (float& x : sum) x = 0;
  }

  __device__ __forceinline__ void join() const { named_barrier(1 + group, 128); }

  __device__ __forceinline__ void load_queries() {
    constexpr int kPieces = kDim / 8;  // of 16 bytes, in a row
#pragma unroll
    for (int i = 0; i < 64 * kPieces / 128; ++i) {
      const int row = group * 64 + (i * 128 + thread) / kPieces, piece = (i * 128 + thread) % kPieces;
      uint4 x{};
      if (row < place.rows) {
        const int all = place.first_row + row;
        x = *reinterpret_cast<const uint4*>(p.q + (place.first_token + all / p.group) * p.q_stride +
                                            (place.kv_head * p.group + all % p.group) * kDim + piece * 8);
      }
      *reinterpret_cast<uint4*>(shared.q[piece / 8] + swizzled_offset(row, piece % 8 * 16)) = x;
    }
    fence_async_shared();
    join();
  }

  // score = q . keys of the slot, in flight when this returns.
  __device__ __forceinline__ void start_scores(int slot) {
    const uint32_t queries = shared_address(shared.q) + group * 64 * 128, keys = shared_address(shared.key[slot]);
    pin_registers(score);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
      wgmma_bf16<kPrefillKeys>(score, wgmma_operand(queries + i / 4 * kPrefillRows * 128 + i % 4 * 32),
                               wgmma_operand(keys + i / 4 * kPrefillKeys * 128 + i % 4 * 32), i > 0);
    wgmma_commit();
  }
  // sum += weight . values of the slot, in flight when this returns.
  __device__ __forceinline__ void start_values(int slot) {
    const uint32_t values = shared_address(shared.value[slot]);
    pin_registers(sum);
    pin_registers(weight);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 16; ++i)
      wgmma_bf16<kDim, 1>(sum, weight[i], wgmma_operand(values + i * 2048, kPrefillKeys * 128), true);
    wgmma_commit();
  }

  // Values of keys that nobody may see: their weights are zero, but zero times NaN is not.
  __device__ __forceinline__ void clear_unseen_values(int slot, int tile) {
    const int begin = tile * kPrefillKeys;
    const int floor = (place.first_key >> p.block_shift) << p.block_shift;
    if (begin + kPrefillKeys <= place.context && begin >= floor) return;
    for (int i = thread; i < kPrefillKeys * kDim / 8; i += 128) {
      const int row = i / (kDim / 8), piece = i % (kDim / 8);
      if (begin + row < floor || begin + row >= place.context)
        *reinterpret_cast<uint4*>(shared.value[slot][piece / 8] + row * 128 + piece % 8 * 16) = uint4{};
    }
    fence_async_shared();
    join();
  }

  // Scores become weights, in f32; `factor` is what sums over earlier tiles are to be multiplied with.
  __device__ __forceinline__ void soften(int tile) {
    const int begin = tile * kPrefillKeys;
    const int own = begin + 2 * (thread % 4);
    if (begin + kPrefillKeys - 1 > place.first_position + (place.first_row + group * 64) / p.group ||
        begin < first_seen(place.last_key, p.window) || group * 64 + 64 > place.rows) {
#pragma unroll
      for (int i = 0; i < kPrefillKeys / 2; ++i) {
        const int key = own + i / 4 * 8 + i % 2, r = i / 2 % 2;
        if (key > position[r] || key < first[r]) score[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = score[2 * r];
#pragma unroll
      for (int i = 0; i < kPrefillKeys / 2; ++i)
        if (i / 2 % 2 == r) most = fmaxf(most, score[i]);
      const float now = fmaxf(largest[r], quad_max(most));
      const float base = now == -INFINITY ? 0.0f : __fmul_rn(now, p.scale_log2);
      factor[r] = exp2_fast(fmaf(largest[r], p.scale_log2, -base));
      largest[r] = now;
      float own_total = 0;
#pragma unroll
      for (int i = 0; i < kPrefillKeys / 2; ++i)
        if (i / 2 % 2 == r) {
          score[i] = exp2_fast(fmaf(score[i], p.scale_log2, -base));
          own_total += score[i];
        }
      total[r] = fmaf(total[r], factor[r], own_total);
    }
  }
  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 16; ++i)
#pragma unroll
      for (int n = 0; n < 4; ++n) weight[i][n] = pack_bf16(score[8 * i + 2 * n], score[8 * i + 2 * n + 1]);
  }
  __device__ __forceinline__ void scale_sums() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sum[i] *= factor[i / 2 % 2];
  }
  __device__ __forceinline__ void release(MBarrier& empty) const {
    if (thread % 32 == 0) empty.arrive();
  }

  __device__ __forceinline__ void run() {
    load_queries();
    shared.key_full[0].wait(0);
    start_scores(0);
    wgmma_wait<0>();
    pin_registers(score);
    release(shared.key_empty[0]);
    shared.value_full[0].wait(0);
    clear_unseen_values(0, place.last_tile);
    soften(place.last_tile);
    pack_weights();
    const int tiles = place.last_tile - place.first_tile + 1;
    for (int i = 1; i < tiles; ++i) {
      const int slot = i % kPrefillStages, before = (i - 1) % kPrefillStages;
      shared.key_full[slot].wait(i / kPrefillStages % 2);
      start_scores(slot);
      shared.value_full[before].wait((i - 1) / kPrefillStages % 2);
      start_values(before);
      wgmma_wait<1>();
      pin_registers(score);
      release(shared.key_empty[slot]);
      soften(place.last_tile - i);
      wgmma_wait<0>();
      pin_registers(sum);
      pin_registers(weight);
      release(shared.value_empty[before]);
      scale_sums();
      pack_weights();
    }
    const int last = (tiles - 1) % kPrefillStages;
    shared.value_full[last].wait((tiles - 1) / kPrefillStages % 2);
    if (tiles > 1) clear_unseen_values(last, place.first_tile);
    start_values(last);
    wgmma_wait<0>();
    pin_registers(sum);
    store();
  }

  // Through shared memory, so that rows leave in vectors.
  __device__ __forceinline__ void store() {
    join();  // nobody reads q any more
    const int lane = thread % 32, warp_row = group * 64 + thread / 32 * 16;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float all = quad_sum(total[r]);
      const float inverse = all > 0 ? __fdiv_rn(1.0f, all) : 0.0f;
      const int row = warp_row + lane / 4 + 8 * r;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j)
        *reinterpret_cast<uint32_t*>(shared.q[j / 8] + swizzled_offset(row, j % 8 * 16 + 4 * (lane % 4))) =
            pack_bf16(sum[4 * j + 2 * r] * inverse, sum[4 * j + 2 * r + 1] * inverse);
    }
    __syncwarp();
    constexpr int kPieces = kDim / 8;
#pragma unroll
    for (int i = 0; i < 16 * kPieces / 32; ++i) {
      const int row = warp_row + (i * 32 + lane) / kPieces, piece = (i * 32 + lane) % kPieces;
      if (row >= place.rows) continue;
      const int all = place.first_row + row;
      *reinterpret_cast<uint4*>(p.out + (place.first_token + all / p.group) * p.out_stride +
                                (place.kv_head * p.group + all % p.group) * kDim + piece * 8) =
          *reinterpret_cast<const uint4*>(shared.q[piece / 8] + swizzled_offset(row, piece % 8 * 16));
    }
  }
};

// Grid: kv_heads times prefill_tiles(), a kv head after the other.
template <int kDim>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    attention_bf16_prefill_kernel(const __grid_constant__ CUtensorMap map, const Bf16AttentionParams p) {
  extern __shared__ std::byte raw[];
  auto& shared = *reinterpret_cast<PrefillShared<kDim>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPrefillStages; ++i) {
      shared.key_full[i].init(1), shared.value_full[i].init(1);
      shared.key_empty[i].init(8), shared.value_empty[i].init(8);
    }
    fence_barrier_init();
    prefetch_tensor_map(map);
  }
  pdl_wait();
  pdl_launch_next();
  const PrefillPlace place(p, static_cast<int>(blockIdx.x));
  if (place.rows == 0) return;
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<24>();
    if (threadIdx.x < 32) produce_prefill(shared, map, p, place, static_cast<int>(threadIdx.x));
  } else {
    take_registers<240>();
    PrefillRowsOf<kDim> rows(shared, p, place, warpgroup - 1, static_cast<int>(threadIdx.x % 128));
    rows.run();
  }
}

}  // namespace hearth::sm90
