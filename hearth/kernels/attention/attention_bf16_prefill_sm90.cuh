// SPDX-License-Identifier: Apache-2.0
// Prefill attention in BF16, after FlashAttention-3 (Shah et al., 2024, sections 3.1 and 3.2): sequences with several
// tokens in the step. One block a multiprocessor takes tile after tile of 128 rows
// (attention_bf16_prefill_plan_sm90.cuh). Warp 0 takes them, and brings tiles of 128 keys and of 128 values through two
// rings; warps 1 to 3 bring the queries of the next tile. Two warpgroups have 64 rows each, and score the next tile of
// keys (wgmma, operands from shared memory) while they weigh the values of the last one (weights from registers), with
// the softmax in between. They start their products in turns, so that one's run while the other has its softmax.
#pragma once

#include <type_traits>

#include "hearth/kernels/attention/attention_bf16_prefill_plan_sm90.cuh"
#include "hearth/kernels/attention/attention_tile_formats_sm90.cuh"

namespace hearth::sm90 {

inline constexpr int kPrefillThreads = 3 * 128;
inline constexpr int kPrefillItems = 2;       // tiles of rows in the block at once
inline constexpr int kPrefillQueryWarps = 3;  // that bring queries

// What of coded keys and values is not in their tiles, as scores and weights want it.
struct PrefillTokenNumbers {
  float key_step[kPrefillKeys], value_step[kPrefillKeys];
  float key_base[kPrefillKeys], value_base[kPrefillKeys];
};
template <bool kCoded>
struct PrefillNumbers {};
template <>
struct PrefillNumbers<true> {
  // A use of a ring's slot by keys fills one. It is read after the slot is empty, and before that of the next use is:
  // three are enough.
  static constexpr int kTiles = 4;
  PrefillTokenNumbers tile[kTiles];
  // Of rows: scores times `scale` are logarithms to base 2; `sum` is that of the query, in the scores' unit.
  float scale[kPrefillItems][kPrefillRows], sum[kPrefillItems][kPrefillRows];
  float value_scale[kPrefillItems];
};

template <int kDim, class Tiles = PlainTiles>
struct PrefillShared {
  static constexpr int kTiles = kDim / 64;                               // tiles of 64 channels
  alignas(1024) std::byte q[kPrefillItems][kTiles][kPrefillRows * 128];  // at the end: out
  alignas(1024) std::byte key[kPrefillStages][kTiles][kPrefillKeys * 128];
  alignas(1024) std::byte value[kPrefillStages][kTiles][kPrefillKeys * 128];
  // Full: one arrival, with the bytes of a tile, or one of each of 4 warps that store it; the consumers wait. Empty: an
  // arrival of each of 8 consumer warps; the producers wait.
  MBarrier key_full[kPrefillStages], key_empty[kPrefillStages];
  MBarrier value_full[kPrefillStages], value_empty[kPrefillStages];
  // Of tiles of rows. Placed: one arrival, `place` is there; the query warps wait. Full: one of each of them, `q` is
  // there too; the consumers wait. Empty: one of each of 8 consumer warps; the producer waits.
  MBarrier placed[kPrefillItems], q_full[kPrefillItems], q_empty[kPrefillItems];
  PrefillPlace place[kPrefillItems];
  PrefillPlan plan;
  PrefillNumbers<Tiles::kCoded> numbers;

  // One thread. Arrivals when a tile of keys or values is full, and when queries are.
  __device__ __forceinline__ void init_barriers(int of_tiles, int of_queries) {
    for (int i = 0; i < kPrefillStages; ++i) {
      key_full[i].init(of_tiles), value_full[i].init(of_tiles);
      key_empty[i].init(8), value_empty[i].init(8);
    }
    for (int i = 0; i < kPrefillItems; ++i) placed[i].init(1), q_full[i].init(of_queries), q_empty[i].init(8);
    fence_barrier_init();
  }
  // All lanes of warp 0: the place, or rows 0 at the end, for the other warps.
  __device__ __forceinline__ void publish(int count, const PrefillPlace& found, int lane) {
    const int slot = count % kPrefillItems;
    q_empty[slot].wait(count / kPrefillItems % 2 ^ 1);
    if (lane == 0) {
      place[slot] = found;
      placed[slot].arrive();
    }
    __syncwarp();
  }
};
template <int kDim, class Tiles = PlainTiles>
inline constexpr int kPrefillSharedBytes = sizeof(PrefillShared<kDim, Tiles>) + 1024;
static_assert(kPrefillSharedBytes<128> <= 227 * 1024, "shared memory of a block");

// The slot of a ring's use number `count`, and the parity of the phase in which it fills.
template <int kSlots>
struct RingPlace {
  int slot, parity;
  __device__ __forceinline__ explicit RingPlace(int count) : slot(count % kSlots), parity(count / kSlots % 2) {}
};

// Warp 0: takes tiles of rows and brings their keys and values, the last tile of keys first. Lane i brings piece i.
template <int kDim>
struct PrefillProducer {
  PrefillShared<kDim>& shared;
  const CUtensorMap& map;
  const Bf16AttentionParams& p;
  const int lane;

  // Where this lane's piece of a tile comes from, if it is wanted.
  struct Piece {
    KvPlace from;
    bool wanted;
  };
  __device__ __forceinline__ Piece find(const PrefillPlace& place, int tile) const {
    const int key = tile * kPrefillKeys + (lane << p.box_shift);
    // Blocks whose keys no row sees may be gone; those behind the context do not exist.
    const bool wanted = lane < kPrefillKeys >> p.box_shift && key < place.context && tile >= place.first_tile &&
                        (key >> p.block_shift) >= (place.first_key >> p.block_shift);
    return {wanted ? find_kv(p, place.sequence, key) : KvPlace{}, wanted};
  }
  __device__ __forceinline__ void bring(std::byte (&to)[kDim / 64][kPrefillKeys * 128], const Piece& piece, int units,
                                        MBarrier& full, MBarrier& empty, int parity) const {
    const int bytes = (__popc(__ballot_sync(0xFFFFFFFF, piece.wanted)) * kDim * 2) << p.box_shift;
    empty.wait(parity ^ 1);
    if (lane == 0) full.arrive_and_expect(bytes);
    __syncwarp();
    if (piece.wanted) {
#pragma unroll
      for (int t = 0; t < kDim / 64; ++t)
        copy_tensor(to[t] + (lane << p.box_shift) * 128, map, 64 * t, piece.from.token, piece.from.units + units, full);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void run() const {
    int item = 0, filled = 0;
    for (int index = static_cast<int>(blockIdx.x); index < shared.plan.items; ++item) {
      const PrefillPlace place = shared.plan.template place<kDim>(p, index);
      Piece piece = find(place, place.last_tile);
      shared.publish(item, place, lane);
      if (lane == 0) index = shared.plan.next(p.counter);
      const int head = place.kv_head * p.head_units;
      for (int tile = place.last_tile; tile >= place.first_tile; --tile, ++filled) {
        const RingPlace<kPrefillStages> at(filled);
        bring(shared.key[at.slot], piece, p.key_units + head, shared.key_full[at.slot], shared.key_empty[at.slot],
              at.parity);
        const Piece next = find(place, tile - 1);
        bring(shared.value[at.slot], piece, p.value_units + head, shared.value_full[at.slot],
              shared.value_empty[at.slot], at.parity);
        piece = next;
      }
      index = __shfl_sync(0xFFFFFFFF, index, 0);
    }
    shared.publish(item, PrefillPlace{}, lane);
  }
};

// Warps 1 to 3; `thread` counts from the first of them.
template <int kDim>
__device__ __forceinline__ void produce_queries(PrefillShared<kDim>& shared, const Bf16AttentionParams& p, int thread) {
  constexpr int kPieces = kDim / 8, kRowStep = 32 * kPrefillQueryWarps / kPieces;  // pieces of 16 bytes, in a row
  const int piece = thread % kPieces;
  for (int item = 0;; ++item) {
    const RingPlace<kPrefillItems> at(item);
    shared.placed[at.slot].wait(at.parity);
    const PrefillPlace& place = shared.place[at.slot];
    const int rows = place.rows;
    const __nv_bfloat16* const from = p.q + place.first_token * p.q_stride + place.kv_head * p.group * kDim + piece * 8;
    if (rows > 0) {
      const uint32_t to = shared_address(shared.q[at.slot][piece / 8]);
      PrefillRowWalk walk(place.first_row + thread / kPieces, kRowStep, p.group);
      for (int row = thread / kPieces; row < kPrefillRows; row += kRowStep, walk.next())
        copy_16(to + swizzled_offset(row, piece % 8 * 16),
                row < rows ? from + walk.token * p.q_stride + walk.head * kDim : p.q, row < rows);
      wait_copies();
      fence_async_shared();
    }
    __syncwarp();
    if (thread % 32 == 0) shared.q_full[at.slot].arrive();
    if (rows == 0) return;
  }
}

// A warpgroup's 64 rows of a tile. A thread has two of them (wgmma.cuh), r = 0 and 1, and a quarter of their columns.
template <int kDim, class Tiles>
struct PrefillRowsOf {
  PrefillShared<kDim, Tiles>& shared;
  const Bf16AttentionParams& p;
  // Where registers are few, read again where it is used.
  const std::conditional_t<Tiles::kCoded, const PrefillPlace&, PrefillPlace> place;
  std::byte (&q)[kDim / 64][kPrefillRows * 128];
  const int slot;    // of both
  const int group;   // the warpgroup's index, 0 or 1
  const int thread;  // of the warpgroup
  float score[kPrefillKeys / 2];
  float sum[kDim / 2];
  uint32_t weight[kPrefillKeys / 16][4];
  float largest[2], total[2], factor[2];  // total: this thread's share
  int position[2], first[2];              // the keys that a row sees; -1 and 0 where there is no such row
  // Of coded formats: PrefillNumbers of the rows; the sum of weight * value base.
  float scale[2], query_sum[2], base[2];

  __device__ __forceinline__ PrefillRowsOf(PrefillShared<kDim, Tiles>& shared_, const Bf16AttentionParams& p_,
                                           int slot_, int group_, int thread_)
      : shared(shared_),
        p(p_),
        place(shared_.place[slot_]),
        q(shared_.q[slot_]),
        slot(slot_),
        group(group_),
        thread(thread_) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = group * 64 + thread / 32 * 16 + thread % 32 / 4 + 8 * r;
      position[r] = row < place.rows ? place.first_position + (place.first_row + row) / p.group : -1;
      first[r] = first_seen(position[r], p.window);
      largest[r] = -INFINITY, total[r] = 0, factor[r] = 1, base[r] = 0;
      if constexpr (Tiles::kCoded) {
        scale[r] = shared.numbers.scale[slot][row];
        if (Tiles::kBases) query_sum[r] = shared.numbers.sum[slot][row];
      } else {
        scale[r] = p.scale_log2;
      }
    }
#pragma unroll
    for (float& x : sum) x = 0;
  }

  __device__ __forceinline__ void join() const { named_barrier(1 + group, 128); }
  // The warpgroups' turns to start products. Both have the same number of them; group 0 begins.
  __device__ __forceinline__ void take_turn() const { named_barrier(3 + group, 256); }
  __device__ __forceinline__ void pass_turn() const { named_barrier_arrive(4 - group, 256); }

  // score = q . keys of the stage, in flight when this returns.
  __device__ __forceinline__ void start_scores(int stage) {
    const uint64_t queries = wgmma_operand(shared_address(q) + group * 64 * 128);
    const uint64_t keys = wgmma_operand(shared_address(shared.key[stage]));
    pin_registers(score);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
      wgmma_16_bits<Tiles::kHalfScores, kPrefillKeys>(score, queries + (i / 4 * kPrefillRows * 128 + i % 4 * 32) / 16,
                                                      keys + (i / 4 * kPrefillKeys * 128 + i % 4 * 32) / 16, i > 0);
    wgmma_commit();
  }
  // sum += weight . values of the stage, in flight when this returns.
  __device__ __forceinline__ void start_values(int stage) {
    const uint64_t values = wgmma_operand(shared_address(shared.value[stage]), kPrefillKeys * 128);
    pin_registers(sum);
    pin_registers(weight);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 16; ++i)
      wgmma_16_bits<Tiles::kHalfWeights, kDim, 1>(sum, weight[i], values + i * 2048 / 16, true);
    wgmma_commit();
  }

  // Values of keys that nobody may see: their weights are zero, but zero times NaN is not. Of coded ones no code is
  // brought.
  __device__ __forceinline__ void clear_unseen_values(RingPlace<kPrefillStages> at, int tile) {
    if (Tiles::kCoded) return;
    const int begin = tile * kPrefillKeys;
    const int floor = (place.first_key >> p.block_shift) << p.block_shift;
    if (begin + kPrefillKeys <= place.context && begin >= floor) return;
    shared.value_full[at.slot].wait(at.parity);
    for (int i = thread; i < kPrefillKeys * kDim / 8; i += 128) {
      const int row = i / (kDim / 8), piece = i % (kDim / 8);
      if (begin + row < floor || begin + row >= place.context)
        *reinterpret_cast<uint4*>(shared.value[at.slot][piece / 8] + row * 128 + piece % 8 * 16) = uint4{};
    }
    fence_async_shared();
    join();
  }

  // Numbers of the keys that scores 4 i and 4 i + 2 belong to, and 4 i + 1 and 4 i + 3.
  __device__ __forceinline__ float2 of_keys(const float (&numbers)[kPrefillKeys], int i) const {
    return *reinterpret_cast<const float2*>(numbers + 2 * (thread % 4) + 8 * i);
  }
  // What is not in the tile of keys.
  __device__ __forceinline__ void complete_scores(const PrefillTokenNumbers& of) {
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 8; ++i) {
      const float2 step = of_keys(of.key_step, i), least = Tiles::kBases ? of_keys(of.key_base, i) : float2{};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float& x = score[4 * i + n];
        x = __fmul_rn(x, n % 2 == 0 ? step.x : step.y);
        if (Tiles::kBases) x = fmaf(n % 2 == 0 ? least.x : least.y, query_sum[n / 2], x);
      }
    }
  }
  // What is not in the tile of values.
  __device__ __forceinline__ void complete_weights(const PrefillTokenNumbers& of) {
    float own_base[2] = {};
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 8; ++i) {
      const float2 step = of_keys(of.value_step, i), least = Tiles::kBases ? of_keys(of.value_base, i) : float2{};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float& x = score[4 * i + n];
        if (Tiles::kBases) own_base[n / 2] = fmaf(n % 2 == 0 ? least.x : least.y, x, own_base[n / 2]);
        x = __fmul_rn(x, n % 2 == 0 ? step.x : step.y);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) base[r] = fmaf(base[r], factor[r], own_base[r]);
  }

  // Scores become weights, in f32; `factor` is what sums over earlier tiles are to be multiplied with.
  __device__ __forceinline__ void soften(int tile, [[maybe_unused]] int taken) {
    if constexpr (Tiles::kSteps) complete_scores(shared.numbers.tile[taken % shared.numbers.kTiles]);
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
      const float most_log2 = now == -INFINITY ? 0.0f : __fmul_rn(now, scale[r]);
      // Exactly 1 where the row sees no larger score, so that tiles of which it sees nothing change no bit of it.
      factor[r] = now == largest[r] ? 1.0f : exp2_fast(fmaf(largest[r], scale[r], -most_log2));
      largest[r] = now;
      // f16 has small numbers if the largest weight is as large as it may be; the total has the same factor.
      const float one_log2 = Tiles::kHalfWeights ? 14 - most_log2 : -most_log2;
      float own_total = 0;
#pragma unroll
      for (int i = 0; i < kPrefillKeys / 2; ++i)
        if (i / 2 % 2 == r) {
          score[i] = exp2_fast(fmaf(score[i], scale[r], one_log2));
          own_total += score[i];
        }
      total[r] = fmaf(total[r], factor[r], own_total);
    }
    if constexpr (Tiles::kSteps) complete_weights(shared.numbers.tile[taken % shared.numbers.kTiles]);
  }
  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int i = 0; i < kPrefillKeys / 16; ++i)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float low = score[8 * i + 2 * n], high = score[8 * i + 2 * n + 1];
        weight[i][n] = Tiles::kHalfWeights ? pack_f16(low, high) : pack_bf16(low, high);
      }
  }
  __device__ __forceinline__ void scale_sums() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) sum[i] *= factor[i / 2 % 2];
  }
  __device__ __forceinline__ void release(MBarrier& empty) const {
    if (thread % 32 == 0) empty.arrive();
  }

  // `taken` counts the block's tiles of keys.
  __device__ __forceinline__ void run(int& taken) {
    {
      const RingPlace<kPrefillStages> at(taken);
      shared.key_full[at.slot].wait(at.parity);
      start_scores(at.slot);
      wgmma_wait<0>();
      pin_registers(score);
      release(shared.key_empty[at.slot]);
      soften(place.last_tile, taken);
      pack_weights();
      clear_unseen_values(at, place.last_tile);
    }
    for (int tile = place.last_tile - 1; tile >= place.first_tile; --tile) {
      const RingPlace<kPrefillStages> before(taken), at(++taken);
      shared.key_full[at.slot].wait(at.parity);
      shared.value_full[before.slot].wait(before.parity);
      take_turn();
      start_scores(at.slot);
      start_values(before.slot);
      pass_turn();
      wgmma_wait<1>();
      pin_registers(score);
      release(shared.key_empty[at.slot]);
      soften(tile, taken);
      keep_before_wait(total[0] < 0 || total[1] < 0);
      wgmma_wait<0>();
      pin_registers(sum);
      pin_registers(weight);
      release(shared.value_empty[before.slot]);
      scale_sums();
      pack_weights();
    }
    const RingPlace<kPrefillStages> last(taken++);
    shared.value_full[last.slot].wait(last.parity);
    if (place.last_tile > place.first_tile) clear_unseen_values(last, place.first_tile);
    start_values(last.slot);
    wgmma_wait<0>();
    pin_registers(sum);
    release(shared.value_empty[last.slot]);
    store();
  }

  // Through shared memory, so that rows leave in vectors.
  __device__ __forceinline__ void store() {
    join();  // nobody reads q any more
    float value_scale = 1;
    if constexpr (Tiles::kCoded) value_scale = shared.numbers.value_scale[slot];
    const int lane = thread % 32, warp_row = group * 64 + thread / 32 * 16;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float all = quad_sum(total[r]);
      const float inverse = all > 0 ? __fdiv_rn(1.0f, all) : 0.0f;
      const int row = warp_row + lane / 4 + 8 * r;
      const float all_bases = Tiles::kBases ? quad_sum(base[r]) : 0.0f;
      const auto result = [&](float x) {
        if (Tiles::kBases) x += all_bases;
        x *= inverse;
        return Tiles::kCoded ? x * value_scale : x;
      };
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j)
        *reinterpret_cast<uint32_t*>(q[j / 8] + swizzled_offset(row, j % 8 * 16 + 4 * (lane % 4))) =
            pack_bf16(result(sum[4 * j + 2 * r]), result(sum[4 * j + 2 * r + 1]));
    }
    __syncwarp();
    constexpr int kPieces = kDim / 8, kRowStep = 32 / kPieces;
    const int piece = lane % kPieces;
    __nv_bfloat16* const to = p.out + place.first_token * p.out_stride + place.kv_head * p.group * kDim + piece * 8;
    int row = warp_row + lane / kPieces;
    PrefillRowWalk walk(place.first_row + row, kRowStep, p.group);
#pragma unroll
    for (int i = 0; i < 16 / kRowStep; ++i, row += kRowStep, walk.next())
      if (row < place.rows)
        *reinterpret_cast<uint4*>(to + walk.token * p.out_stride + walk.head * kDim) =
            *reinterpret_cast<const uint4*>(q[piece / 8] + swizzled_offset(row, piece % 8 * 16));
  }
};

// The two consumer warpgroups.
template <int kDim, class Tiles>
__device__ __forceinline__ void consume_prefill(PrefillShared<kDim, Tiles>& shared, const Bf16AttentionParams& p,
                                                int group, int thread) {
  if (group == 1) named_barrier_arrive(3, 256);  // group 0 has the first turn
  for (int item = 0, taken = 0;; ++item) {
    const RingPlace<kPrefillItems> at(item);
    shared.q_full[at.slot].wait(at.parity);
    if (shared.place[at.slot].rows == 0) break;
    PrefillRowsOf<kDim, Tiles> rows(shared, p, at.slot, group, thread);
    rows.run(taken);
    __syncwarp();
    rows.release(shared.q_empty[at.slot]);
  }
  if (group == 0) named_barrier(3, 256);  // the last turn that it was given
}

// Grid: as many blocks as multiprocessors, or as tiles where there are less.
template <int kDim>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    attention_bf16_prefill_kernel(const __grid_constant__ CUtensorMap map, const Bf16AttentionParams p) {
  extern __shared__ std::byte raw[];
  auto& shared = *reinterpret_cast<PrefillShared<kDim>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  // The shuffle tells the compiler that all threads of a warp agree.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / 128, 0), thread = threadIdx.x % 128;
  if (threadIdx.x == 0) {
    shared.init_barriers(1, kPrefillQueryWarps);
    prefetch_tensor_map(map);
  }
  // The step's arrays were there before its first kernel.
  if (threadIdx.x < 32) shared.plan.fill(p, thread);
  pdl_wait();
  pdl_launch_next();
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<40>();
    if (thread < 32) {
      PrefillProducer<kDim>{shared, map, p, thread}.run();
    } else {
      produce_queries(shared, p, thread - 32);
    }
  } else {
    take_registers<232>();
    consume_prefill(shared, p, warpgroup - 1, thread);
  }
}

}  // namespace hearth::sm90
