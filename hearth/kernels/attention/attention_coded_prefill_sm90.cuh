// SPDX-License-Identifier: Apache-2.0
// Prefill attention over KV in FP8 and 4 bits: the tiles, the order and the two warpgroups of consumers are those of
// attention_bf16_prefill_sm90.cuh. Keys and values do not come by the copy engine: one warpgroup brings keys, another
// values. Each of its warps loads the codes of 32 tokens of a tile, and when a slot is empty widens them in registers and
// stores them as the tensor cores want them. The values' warpgroup widens queries to f16 too, after what the format does
// to them.
#pragma once

#include "hearth/kernels/attention/attention_bf16_prefill_sm90.cuh"

namespace hearth::sm90 {

inline constexpr int kCodedPrefillThreads = 4 * 128;

struct CodedAttentionParams : Bf16AttentionParams {
  DeviceKv kv;
};

// A warpgroup that brings keys or values.
template <int kDim, class Tiles, bool kValues>
struct CodedProducer {
  PrefillShared<kDim, Tiles>& shared;
  const CodedAttentionParams& p;
  const int thread, warp, lane;

  static constexpr int kWarps = 4, kWarpKeys = kPrefillKeys / kWarps;
  // Loads of 16 bytes: of a row of codes, and a lane's of its warp's 32 rows. Load i of lane l is piece (4 i + l / 8) %
  // kLoads of row (4 i + l / 8) / kLoads * 8 + l % 8: eight neighbouring lanes store to eight rows, in all banks. Below,
  // what depends on i and what on l are apart, so that loads share registers.
  static constexpr int kLoads = kDim * Tiles::kBits / 8 / 16;
  static constexpr int kAhead = kLoads <= 4 ? kLoads : 3;  // loads before the slot is empty: as many as registers allow
  using Tile = std::byte[kDim / 64][kPrefillKeys * 128];

  __device__ __forceinline__ CodedProducer(PrefillShared<kDim, Tiles>& shared_, const CodedAttentionParams& p_,
                                           int thread_)
      : shared(shared_), p(p_), thread(thread_), warp(thread_ / 32), lane(thread_ % 32) {}

  // Of the token that is the lane's own of its warp's: its block's first byte in units, -1 where it is not wanted.
  __device__ __forceinline__ int find(const PrefillPlace& place, int tile) const {
    const int key = tile * kPrefillKeys + warp * kWarpKeys + lane;
    // Blocks whose keys no row sees may be gone; those behind the context do not exist.
    const bool wanted =
        key < place.context && tile >= place.first_tile && (key >> p.block_shift) >= (place.first_key >> p.block_shift);
    return wanted ? find_kv(p, place.sequence, key).units : -1;
  }

  __device__ __forceinline__ int row_of(int load) const {
    return 4 * load / kLoads * 8 + lane / 8 / kLoads * 8 + lane % 8;
  }
  // Of the row in its block.
  __device__ __forceinline__ int slot_of(int tile, int row) const {
    return (tile * kPrefillKeys + warp * kWarpKeys + row) & ((1 << p.block_shift) - 1);
  }
  // `from`: the pool at the layer's keys or values of the kv head; `units`: find() of the tile.
  __device__ __forceinline__ uint4 load(const std::byte* from, int tile, int units, int load) const {
    const int block = __shfl_sync(0xFFFFFFFF, units, row_of(load)), stride = static_cast<int>(p.kv.token_stride_bytes);
    if (block < 0) return uint4{};
    // Eight rows lie in one block.
    const int lanes = lane % 8 * stride + lane / 8 % kLoads * 16;
    const int loads = slot_of(tile, row_of(load) - lane % 8) * stride + 4 * load % kLoads * 16;
    return __ldcg(reinterpret_cast<const uint4*>(from + int64_t{block} * kKvUnitBytes + lanes + loads));
  }
  // Step, and base behind it, of the lane's own token.
  __device__ __forceinline__ uint32_t load_numbers(const std::byte* from, int tile, int units) const {
    if (!Tiles::kSteps || units < 0) return 0;
    from += int64_t{units} * kKvUnitBytes + slot_of(tile, lane) * static_cast<int>(p.kv.scale_token_stride_bytes);
    return Tiles::kBases ? __ldcg(reinterpret_cast<const uint32_t*>(from))
                         : __ldcg(reinterpret_cast<const uint16_t*>(from));
  }
  __device__ __forceinline__ void store_numbers(uint32_t key, uint32_t value, int filled) const {
    if constexpr (Tiles::kSteps) {
      PrefillTokenNumbers& to = shared.numbers.tile[filled % shared.numbers.kTiles];
      const int at = warp * kWarpKeys + lane;
      const auto half = [](uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); };
      to.key_step[at] = half(key), to.value_step[at] = half(value);
      // Elements of the tiles are codes less 8.
      if (Tiles::kBases) {
        to.key_base[at] = fmaf(8, half(key), half(key >> 16));
        to.value_base[at] = fmaf(8, half(value), half(value >> 16));
      }
    }
  }
  __device__ __forceinline__ void store(Tile& to, const uint4& codes, int load) const {
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
    // Of 8 numbers, in the row; those of a load are whole tiles.
    const int lanes = lane / 8 % kLoads * Tiles::kPieces, loads = 4 * load % kLoads * Tiles::kPieces;
    std::byte* const row = to[loads / 8 + lanes / 8] + (warp * kWarpKeys + row_of(load)) * 128;
#pragma unroll
    for (int i = 0; i < Tiles::kPieces; ++i)
      *reinterpret_cast<uint4*>(row + (((lanes % 8 + i) ^ lane % 8) * 16)) =
          kValues ? Tiles::values(word, i) : Tiles::keys(word, i);
  }
  __device__ __forceinline__ void finish(MBarrier& full) const {
    fence_async_shared();
    __syncwarp();
    if (lane == 0) full.arrive();
  }

  // Queries of an item, as they lie in memory; then, by the same threads, in f16 and with their rows' numbers.
  static constexpr int kQueryPieces = kDim / 8, kQueryStep = 128 / kQueryPieces;
  __device__ __forceinline__ void start_queries(const PrefillPlace& place, int slot) const {
    const int piece = thread % kQueryPieces;
    const __nv_bfloat16* const from = p.q + place.first_token * p.q_stride + place.kv_head * p.group * kDim + piece * 8;
    const uint32_t to = shared_address(shared.q[slot][piece / 8]);
    PrefillRowWalk walk(place.first_row + thread / kQueryPieces, kQueryStep, p.group);
#pragma unroll 4
    for (int row = thread / kQueryPieces; row < kPrefillRows; row += kQueryStep, walk.next())
      copy_16(to + swizzled_offset(row, piece % 8 * 16),
              row < place.rows ? from + walk.token * p.q_stride + walk.head * kDim : p.q, row < place.rows);
  }
  __device__ __forceinline__ void finish_queries(const PrefillPlace& place, int slot) const {
    const int piece = thread % kQueryPieces;
    float factor[8];
    const bool channels = p.kv.channel_scale != nullptr;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      factor[i] = channels ? __fdiv_rn(1, p.kv.channel_scale[place.kv_head * p.kv.channel_stride + piece * 8 + i]) : 1;
    const float key_scale = p.kv.k_scale[place.kv_head];
    // A rotation's factor is the row's.
    const float row_scale = p.scale_log2 * fabsf(key_scale) * (Tiles::kBases ? rsqrtf(kDim) : 1);
    wait_copies();
#pragma unroll 1
    for (int row = thread / kQueryPieces; row < kPrefillRows; row += kQueryStep) {
      auto& at = *reinterpret_cast<uint4*>(shared.q[slot][piece / 8] + swizzled_offset(row, piece % 8 * 16));
      const uint4 stored = at;
      const uint32_t word[4] = {stored.x, stored.y, stored.z, stored.w};
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xFFFF0000u);
        if (channels) x[i] *= factor[i];
      }
      const float first = x[0];
      if (Tiles::kBases) rotate(x);
      // The largest of a row goes to [2^14, 2^15), and numbers down to 2^-28 of it keep all bits of f16.
      float most = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(x[i]));
#pragma unroll
      for (int step = 1; step < kQueryPieces; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, step));
      const uint32_t exponent = min(268 - (__float_as_uint(most) >> 23), 253u);
      const float up = copysignf(__uint_as_float(exponent << 23), key_scale);
      at = {pack_f16(x[0] * up, x[1] * up), pack_f16(x[2] * up, x[3] * up), pack_f16(x[4] * up, x[5] * up),
            pack_f16(x[6] * up, x[7] * up)};
      if (piece == 0) {
        // Not zero: scores of minus infinity stay so.
        shared.numbers.scale[slot][row] = fmaxf(row_scale * __uint_as_float((254 - exponent) << 23), 0x1p-126f);
        // Only row 0 of a Hadamard matrix has another sum than 0.
        shared.numbers.sum[slot][row] = kDim * first * up;
      }
    }
    if (thread == 0) shared.numbers.value_scale[slot] = p.kv.v_scale[place.kv_head];
    finish(shared.q_full[slot]);
  }
  // By the Hadamard matrix of kDim rows, without its factor. Lanes have 8 channels each.
  __device__ __forceinline__ void rotate(float (&x)[8]) const {
#pragma unroll
    for (int half = 1; half < 8; half *= 2)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if ((i & half) == 0) {
          const float low = x[i], high = x[i + half];
          x[i] = low + high, x[i + half] = low - high;
        }
#pragma unroll
    for (int half = 1; half < kQueryPieces; half *= 2) {
      const float sign = (lane & half) == 0 ? 1.0f : -1.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = fmaf(x[i], sign, __shfl_xor_sync(0xFFFFFFFF, x[i], half));
    }
  }

  // Tiles of an item, the last first; `filled` counts the block's. Codes are asked for behind the fence of the tile
  // before, which would wait for them.
  __device__ __forceinline__ void run_item(const PrefillPlace& place, int item, int& filled) const {
    int units = find(place, place.last_tile);
    if (kValues) {
      start_queries(place, item % kPrefillItems);
      finish_queries(place, item % kPrefillItems);
    }
    for (int tile = place.last_tile; tile >= place.first_tile; --tile, ++filled) {
      // Not kept over the loop: registers are few.
      const std::byte* const from = (kValues ? p.kv.value : p.kv.key) + place.kv_head * p.kv.head_stride_bytes;
      uint4 codes[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) codes[i] = load(from, tile, units, i);
      uint32_t key_numbers = 0, value_numbers = 0;
      if (!kValues) {
        const int64_t numbers = p.kv.scale_offset_bytes + place.kv_head * p.kv.scale_head_stride_bytes;
        key_numbers = load_numbers(p.kv.key + numbers, tile, units);
        value_numbers = load_numbers(p.kv.value + numbers, tile, units);
      }
      const int next = find(place, tile - 1);
      const RingPlace<kPrefillStages> at(filled);
      (kValues ? shared.value_empty : shared.key_empty)[at.slot].wait_or_fault(at.parity ^ 1);
      if (!kValues) store_numbers(key_numbers, value_numbers, filled);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        store((kValues ? shared.value : shared.key)[at.slot], codes[i % kAhead], i);
        if (i + kAhead < kLoads) codes[i % kAhead] = load(from, tile, units, i + kAhead);
      }
      units = next;
      finish((kValues ? shared.value_full : shared.key_full)[at.slot]);
    }
  }

  __device__ __forceinline__ void run() const {
    int filled = 0, index = static_cast<int>(blockIdx.x);
    for (int item = 0;; ++item) {
      const RingPlace<kPrefillItems> at(item);
      if (!kValues && warp == 0) {
        const bool more = index < shared.plan.items;
        shared.publish(item, more ? shared.plan.template place<kDim>(p, index) : PrefillPlace{}, lane);
        if (more && lane == 0) index = shared.plan.next(p.counter);
        index = __shfl_sync(0xFFFFFFFF, index, 0);
      }
      shared.placed[at.slot].wait_or_fault(at.parity);
      const PrefillPlace& place = shared.place[at.slot];  // read again where it is used: registers are few
      if (place.rows == 0) {
        if (kValues) finish(shared.q_full[at.slot]);
        return;
      }
      run_item(place, item, filled);
    }
  }
};

// Grid: as many blocks as multiprocessors, or as tiles where there are less.
template <int kDim, class Tiles>
__global__ void __launch_bounds__(kCodedPrefillThreads, 1)
    attention_coded_prefill_kernel(const __grid_constant__ CodedAttentionParams p) {
  extern __shared__ std::byte raw[];
  auto& shared = *reinterpret_cast<PrefillShared<kDim, Tiles>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  // The shuffle tells the compiler that all threads of a warp agree.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / 128, 0), thread = threadIdx.x % 128;
  if (threadIdx.x == 0) shared.init_barriers(4, 4);
  // The step's arrays were there before its first kernel.
  if (threadIdx.x < 32) shared.plan.fill(p, thread);
  pdl_wait();
  pdl_launch_next();
  __syncthreads();
  constexpr int kRegisters = Tiles::kProducerRegisters;
  if (warpgroup == 0) {
    give_registers<kRegisters>();
    CodedProducer<kDim, Tiles, false>(shared, p, thread).run();
  } else if (warpgroup == 1) {
    give_registers<kRegisters>();
    CodedProducer<kDim, Tiles, true>(shared, p, thread).run();
  } else {
    take_registers<256 - kRegisters>();
    consume_prefill<kDim, Tiles>(shared, p, warpgroup - 2, thread);
  }
}

}  // namespace hearth::sm90
