// SPDX-License-Identifier: Apache-2.0
// The kernel of linear_nibble_wide_sm90.h. A warp copies, a unit or two of K of W and of the tokens a stage; two or three
// warpgroups multiply, each 64 rows of W by all tokens of the tile, W from registers: shared memory gives units
// (nibble_units.h), a decoder (linear_nibble_fragments_sm90.cuh) the fragments. A unit's sums are added to a tile's in
// f32, times its scales. Which tiles a block has, and which of them in part: linear_nibble_wide_plan_sm90.cuh. Sums of
// a tile that blocks share meet in global memory, each warpgroup's for itself.
#pragma once

#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/linear/linear_nibble_fragments_sm90.cuh"
#include "hearth/kernels/linear/linear_nibble_wide_plan_sm90.cuh"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/kernels/sm90/block.cuh"
#include "hearth/kernels/sm90/flags.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"

namespace hearth::sm90 {

constexpr int kWideMostTeams = 3, kWideTeamThreads = 128;
constexpr int kWideTeamRows = 64;                        // of W that a warpgroup has
constexpr int kWideBarrierOfTeams = 1 + kWideMostTeams;  // named, of all of them; each has one of its own
constexpr int kWideCopyRegisters = 24;                   // of a thread where they are moved
constexpr int kWideChunkBytes = 128;                     // a row of a swizzled tile in shared memory
// A unit, at most: with scales of f32 and zero points.
constexpr int kWideUnitBytes = kUnitCodeBytes + kUnitRows * 5;

struct WideMaps {
  CUtensorMap x, units;
};

struct WideParams {
  NarrowPart part;  // weight: units
  WidePlan plan;
  int m, token_tiles;  // tiles that follow each other have the same rows of W
  int unit_bytes;
  // Of W's scales. Words, for an instruction has no operand of bytes.
  int are_f32, are_f16;
  bool has_zeros;
  const float* x_scale;
  bool in_pairs;    // two rows of out and residual, in bf16, may be moved at once
  float* partial;   // [blocks][teams][sums of a thread][kWideTeamThreads]
  uint32_t* ready;  // [blocks][teams]: its partial sums are there
};

// What a tile's kernel is made from; a type, for nvcc 13.0 cannot name a kernel by a value of a class. When each is
// taken, and why: linear_nibble_wide_tile.h.
struct WideConfig {
  static constexpr int teams = 2;  // warpgroups that multiply
  static constexpr int units = 2;  // of K in a stage
  // Two warpgroups have the same rows, each every other unit; else rows of their own.
  static constexpr bool splits_k = false;
};
struct Wide128x32 : WideConfig {
  static constexpr int tokens = 32;
};
struct Wide128x64 : WideConfig {
  static constexpr int tokens = 64;
};
struct Wide64x64 : Wide128x64 {
  static constexpr bool splits_k = true;
};
struct Wide128x128 : WideConfig {
  static constexpr int tokens = 128;
};
// Of three warpgroups one decodes, one adds up and one's products run.
struct Wide192x128 : Wide128x128 {
  static constexpr int teams = 3, units = 1;
};

// Shared memory: stages (the tokens' chunks one behind the other, then W strip by strip), then sums.
template <class Codec, class Config>
struct WideShape {
  static constexpr int kTokens = Config::tokens, kTeams = Config::teams;
  // Many tokens' sums take all registers: the copying warp is then a warpgroup, which gives its own away. With fewer,
  // small kernels find room beside the block.
  static constexpr bool kMovesRegisters = kTokens > 64;
  static constexpr int kRegisters = kTeams == 3 ? 160 : 240;
  static constexpr int kMultipliers = kTeams * kWideTeamThreads;
  static constexpr int kThreads = kMultipliers + (kMovesRegisters ? 128 : 32);
  static constexpr int kRows = (Config::splits_k ? 1 : kTeams) * kWideTeamRows;
  static constexpr int kStrips = kRows / kUnitRows, kStripBytes = Config::units * kWideUnitBytes;
  static constexpr int kUnitChunks = Codec::kBf16 ? 2 : 1;  // of the tokens
  static constexpr int kTokenBytes = kTokens * kWideChunkBytes;
  static constexpr int kTokenStageBytes = Config::units * kUnitChunks * kTokenBytes;
  static constexpr int kStageBytes = (kStrips * kStripBytes + kTokenStageBytes + 1023) / 1024 * 1024;
  static constexpr int kJoinBytes = Config::splits_k ? kWideTeamRows * kTokens * 4 : 0;  // sums of the second warpgroup
  // All that a block may have, as linear_stream_sm90.cu.
  static constexpr int kStages = (225 * 1024 - kSharedLeft - kJoinBytes) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kJoinBytes + 1024;
  static_assert(kStages >= 2 && kStageBytes % 1024 == 0);
};

template <class Codec, class Config>
class WideBlock {
 public:
  using Shape = WideShape<Codec, Config>;
  static constexpr int kTokens = Config::tokens, kUnits = Config::units;
  static constexpr int kStages = Shape::kStages, kSums = kTokens / 2, kSlices = Codec::kBf16 ? 8 : 4;
  static constexpr int kUnitStep = Config::splits_k ? 2 : 1;  // from a warpgroup's unit to its next

  __device__ WideBlock(const WideParams& p, std::byte* shared, const uint4* tables, MBarrier* barriers)
      : p_(p), shared_(shared_address_once(shared)), tables_(tables), barriers_(shared_address_once(barriers)) {}

  // One thread.
  __device__ void copy(const WideMaps& maps) {
    const int held = min(kStages, p_.plan.units(block_here()));
    for_each_unit([&](int unit, int stage, int, int row, int, int chunk) {
      if (unit < held) copy_weight(maps, stage, row, chunk);
    });
    pdl_wait();
    for_each_unit([&](int unit, int stage, int parity, int row, int token, int chunk) {
      if (unit >= held) {
        empty(stage).wait_or_fault(parity ^ 1);
        copy_weight(maps, stage, row, chunk);
      }
      copy_tensor(tokens_at(stage), maps.x, 0, token, chunk * (kUnits * Shape::kUnitChunks), full(stage));
    });
  }

  // The multipliers.
  __device__ void multiply() {
    WideWork work(p_.plan, block_here());
    pdl_wait();
    Stage stage;
    while (work.has_more()) {
      float total[kSums] = {};
      // The same in all lanes, which ptxas sees in what a reduction gives: so the loop's numbers are in uniform registers.
      work.left = static_cast<int>(__reduce_max_sync(~0u, static_cast<unsigned>(work.left)));
      {
        const WideSegment segment = work.here(p_.plan, block_here());
        for (int left = segment.last - segment.first; left > 0; --left, stage = stage.next())
          multiply_stage(stage, total);
      }
      if constexpr (Config::splits_k) join(total);
      // Once more, instead of keeping it meanwhile.
      const WideSegment segment = work.here(p_.plan, block_here());
      if (!Config::splits_k || team() == 0) {
        if (segment.last < p_.plan.chunks) {
          leave(total);
        } else {
          collect(segment, total);
          write(segment.tile, total);
        }
      }
      work.advance(segment);
    }
  }

 private:
  // Counts through the stages.
  struct Stage {
    int at = 0, parity = 0;
    __device__ __forceinline__ Stage next() const {
      return at + 1 == kStages ? Stage{0, parity ^ 1} : Stage{at + 1, parity};
    }
  };
  // Of a unit: W's registers, and the scales of rows r and r + 8.
  struct Fragments {
    uint32_t at[kSlices][4];
    float low, high;
  };

  template <class F>
  __device__ __forceinline__ void for_each_unit(const F& f) const {
    int unit = 0;
    Stage stage;
    WideWork work(p_.plan, block_here());
#pragma unroll 1
    while (work.has_more()) {
      const WideSegment segment = work.here(p_.plan, block_here());
      const int row_tile = segment.tile / p_.token_tiles, token_tile = segment.tile - row_tile * p_.token_tiles;
      const int row = row_tile * Shape::kRows;
#pragma unroll 1
      for (int chunk = segment.first; chunk < segment.last; ++chunk, stage = stage.next())
        f(unit++, stage.at, stage.parity, row, token_tile * kTokens, chunk);
      work.advance(segment);
    }
  }
  __device__ __forceinline__ MBarrier& full(int stage) const {
    return *static_cast<MBarrier*>(__cvta_shared_to_generic(barriers_ + stage * sizeof(MBarrier)));
  }
  __device__ __forceinline__ MBarrier& empty(int stage) const { return full(kStages + stage); }
  __device__ __forceinline__ std::byte* tokens_at(int stage) const {
    return static_cast<std::byte*>(__cvta_shared_to_generic(shared_ + stage * Shape::kStageBytes));
  }
  __device__ __forceinline__ std::byte* weight_at(int stage) const {
    return tokens_at(stage) + Shape::kTokenStageBytes;
  }
  // Asked for where they are used, for the main loop has no registers for them.
  __device__ __forceinline__ static int team() { return thread_here() / kWideTeamThreads; }
  __device__ __forceinline__ static int warp() { return thread_here() % kWideTeamThreads / 32; }
  __device__ __forceinline__ static int lane() { return thread_here() % 32; }
  __device__ __forceinline__ void team_barrier() const { named_barrier(1 + team(), kWideTeamThreads); }
  __device__ __forceinline__ bool leads() const { return thread_here() % kWideTeamThreads == 0; }

  // The tokens' bytes are expected with them. What does not exist arrives as zeros.
  __device__ __forceinline__ void copy_weight(const WideMaps& maps, int stage, int row, int chunk) {
    full(stage).arrive_and_expect(Shape::kStrips * strip_bytes() + Shape::kTokenStageBytes);
    if (p_.token_tiles == 1) {
      copy_tensor_once(weight_at(stage), maps.units, 0, chunk * kUnits, row / kUnitRows, full(stage));
    } else {
      copy_tensor(weight_at(stage), maps.units, 0, chunk * kUnits, row / kUnitRows, full(stage));
    }
  }
  __device__ __forceinline__ int strip_bytes() const { return kUnits * p_.unit_bytes; }

  // A warpgroup's first row of W.
  __device__ __forceinline__ int first_row_of(int tile) const {
    return tile / p_.token_tiles * Shape::kRows + (Config::splits_k ? 0 : team() * kWideTeamRows);
  }

  // Where a lane's codes and scales of the warpgroup's first unit lie in a stage.
  struct Place {
    uint32_t codes, scales;
  };
  __device__ __forceinline__ Place place_here() const {
    const int strip = (Config::splits_k ? 0 : team() * (kWideTeamRows / kUnitRows)) + warp();
    const uint32_t unit =
        Shape::kTokenStageBytes + strip * strip_bytes() + (Config::splits_k ? team() * p_.unit_bytes : 0);
    return {unit + lane() * 16, unit + kUnitCodeBytes + lane() / 4 * (p_.are_f32 != 0 ? 8 : 4)};
  }
  // What a unit has for the lane: words, and scales and zero points of rows r and r + 8.
  struct Packed {
    uint4 words[2];
    uint32_t zeros;
    float low, high;
  };
  __device__ __forceinline__ Packed read(int stage, int unit, const Place& place) const {
    const std::byte* const at = tokens_at(stage) + unit * p_.unit_bytes;
    Packed packed;
#pragma unroll
    for (int v = 0; v < 2; ++v) packed.words[v] = *reinterpret_cast<const uint4*>(at + place.codes + v * 512);
    if (p_.are_f32 != 0) {
      const float2 pair = *reinterpret_cast<const float2*>(at + place.scales);
      packed.low = pair.x, packed.high = pair.y;
    } else {
      // Both types, without a branch.
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(at + place.scales);
      const float2 halves = __half22float2(reinterpret_cast<const __half2&>(pair));
      packed.low = p_.are_f16 != 0 ? halves.x : __uint_as_float(pair << 16);
      packed.high = p_.are_f16 != 0 ? halves.y : __uint_as_float(pair & 0xFFFF0000);
    }
    packed.zeros = 0x0808;
    if (Codec::kHasState && p_.has_zeros)
      packed.zeros = *reinterpret_cast<const uint16_t*>(at + place.codes - lane() * 16 + p_.unit_bytes - kUnitRows +
                                                        lane() / 4 * 2);
    return packed;
  }
  __device__ __forceinline__ void decode(const Packed& packed, Fragments& a) const {
    a.low = packed.low, a.high = packed.high;
    const typename Codec::State state_low(packed.zeros & 15, tables_), state_high(packed.zeros >> 8 & 15, tables_);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const uint4& words = packed.words[slice / (kSlices / 2)];
      const bool is_first = slice % (kSlices / 2) < kSlices / 4;
      Codec::decode(is_first ? words.x : words.z, slice, state_low, a.at[slice][0], a.at[slice][2]);
      Codec::decode(is_first ? words.y : words.w, slice, state_high, a.at[slice][1], a.at[slice][3]);
    }
    // Else ptxas 13.0 decodes between the products, in registers of words (C7519).
    pin_registers(a.at);
  }

  __device__ __forceinline__ void multiply_stage(const Stage& stage, float (&total)[kSums]) {
    // Operands differ in the address alone, the lowest 14 bits.
    const uint64_t first_tokens = wgmma_operand(shared_address(tokens_at(0)));
    const uint32_t tokens = static_cast<uint32_t>(first_tokens) + stage.at * (Shape::kStageBytes / 16);
    const Place place = place_here();
    full(stage.at).wait_or_fault(stage.parity);
#pragma unroll
    for (int unit = 0; unit < kUnits; unit += kUnitStep) {
      Fragments a;
      decode(read(stage.at, unit, place), a);
      const int here = Config::splits_k ? unit + __shfl_sync(~0u, team(), 0) : unit;
      const uint32_t x = tokens + here * (Shape::kUnitChunks * Shape::kTokenBytes / 16);
      float sum[kSums];  // the first product writes it
      wgmma_begin();
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        const uint64_t slice_x =
            (first_tokens & ~uint64_t{0xFFFFFFFF}) | (x + (slice / 4 * Shape::kTokenBytes + slice % 4 * 32) / 16);
        if constexpr (Codec::kBf16) {
          wgmma_bf16<kTokens>(sum, a.at[slice], slice_x, slice > 0);
        } else {
          wgmma_e4m3<kTokens>(sum, a.at[slice], slice_x, slice > 0);
        }
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin_registers(sum);
      pin_registers(a.at);
      // The words are used up, the scales only below.
      if (unit + kUnitStep >= kUnits && elect_lane())
        empty(stage.at).arrive_behind_loads(__float_as_uint(a.low) ^ __float_as_uint(a.high));
        // One scale after the other: an operand that stays is not read again.
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int i = 0; i < kSums / 2; ++i) {
          const int at = i / 2 * 4 + row * 2 + i % 2;
          total[at] = fmaf(row == 0 ? a.low : a.high, sum[at], total[at]);
        }
    }
  }

  // Both warpgroups' sums, in the first one's registers.
  __device__ __forceinline__ void join(float (&total)[kSums]) const {
    float* const at = reinterpret_cast<float*>(tokens_at(kStages)) + thread_here() % kWideTeamThreads;
    if (team() > 0)
#pragma unroll
      for (int i = 0; i < kSums; ++i) at[i * kWideTeamThreads] = total[i];
    named_barrier(kWideBarrierOfTeams, Shape::kMultipliers);
    if (team() == 0)
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += at[i * kWideTeamThreads];
    named_barrier(kWideBarrierOfTeams, Shape::kMultipliers);  // before it is written again
  }

  __device__ float* partial_of(int block) const {
    return p_.partial + (int64_t{block} * Config::teams + team()) * (kSums * kWideTeamThreads) +
           thread_here() % kWideTeamThreads;
  }
  __device__ uint32_t* ready_of(int block) const { return p_.ready + block * Config::teams + team(); }
  // For the block that ends the tile.
  __device__ void leave(const float (&total)[kSums]) {
    const int block = block_here();
    float* const to = partial_of(block);
#pragma unroll
    for (int i = 0; i < kSums; ++i) to[i * kWideTeamThreads] = total[i];
    __threadfence();
    team_barrier();
    if (leads()) store_release(ready_of(block), 1);
  }
  // Adds what the blocks before this one have of the tile, the lowest first.
  __device__ void collect(const WideSegment& segment, float (&total)[kSums]) {
    const int tile_begin = segment.tile * p_.plan.chunks, end = block_here();
    if (segment.first == 0) return;
    int first = end - 1;
    while (p_.plan.begin(first) > tile_begin) --first;
    for (int block = first; block < end; ++block)
      if (leads()) {
        wait_acquire(ready_of(block), 1);
        *ready_of(block) = 0;
      }
    team_barrier();
    for (int block = first; block < end; ++block) {
      const float* const from = partial_of(block);
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += __ldcg(from + i * kWideTeamThreads);
    }
  }

  // A tile's rows of out, 32 tokens at once.
  static constexpr int kPieceTokens = 32, kPieceSums = kPieceTokens / 2, kPiecePairs = kPieceTokens / 4;
  static constexpr int kPieces = kTokens / kPieceTokens;
  struct Piece {
    int row, token;  // the warp's first
    float sum[kPieceSums];
    float scale;  // of token `lane` of the piece
  };
  __device__ __forceinline__ void write(int tile, const float (&total)[kSums]) const {
    const int first_token = tile % p_.token_tiles * kTokens, row = first_row_of(tile) + warp() * kUnitRows;
    const bool has_residual = p_.part.residual != nullptr, is_f32 = p_.part.out_dtype == DType::kF32;
    // Whether all is moved in pairs of rows; the residual then a piece ahead.
    const bool in_pairs = !is_f32 && p_.in_pairs && row + kUnitRows <= p_.part.n;
    uint32_t next[kPiecePairs];
    if (in_pairs && has_residual) read_pairs(row, first_token, next);
#pragma unroll 1
    for (int i = 0; i < kPieces; ++i) {
      Piece piece{.row = row, .token = first_token + i * kPieceTokens};
#pragma unroll
      for (int one = 0; one < kPieces; ++one)
        if (one == i)
#pragma unroll
          for (int at = 0; at < kPieceSums; ++at) piece.sum[at] = total[one * kPieceSums + at];
      piece.scale = (p_.x_scale == nullptr ? 1 : p_.x_scale[min(piece.token + lane(), p_.m - 1)]) * Codec::kUnit;
      finish(piece);
      if (in_pairs) {
        uint32_t added[kPiecePairs];
#pragma unroll
        for (int pair = 0; pair < kPiecePairs; ++pair) added[pair] = next[pair];
        if (has_residual && i + 1 < kPieces) read_pairs(row, piece.token + kPieceTokens, next);
        write_pairs(piece, has_residual, added);
      } else if (is_f32) {
        write_each<float>(piece);
      } else {
        write_each<__nv_bfloat16>(piece);
      }
    }
  }
  // Lane 4 r + q has, of rows r and r + 8, tokens 2 q and 2 q + 1 of each 8. Scales and bias.
  __device__ __forceinline__ void finish(Piece& piece) const {
    const NarrowPart& part = p_.part;
    float bias[2] = {};
    if (part.bias != nullptr)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        bias[i] = number_at(part.bias, part.bias_dtype, min(piece.row + lane() / 4 + i * 8, part.n - 1));
    const int own = lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kPieceSums; ++i)
      piece.sum[i] = piece.sum[i] * __shfl_sync(~0u, piece.scale, i / 4 * 8 + own + i % 2) + bias[i / 2 % 2];
  }
  // In pairs, lane 4 t + q has rows 2 q and 2 q + 1 of token t of 8, and those 8 behind. Of tokens that do not exist the
  // last one's.
  __device__ __forceinline__ void read_pairs(int row, int token, uint32_t (&pairs)[kPiecePairs]) const {
    const auto* const from = static_cast<const __nv_bfloat16*>(p_.part.residual) + row + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kPiecePairs; ++i)
      pairs[i] = *reinterpret_cast<const uint32_t*>(
          from + i % 2 * 8 + min(token + i / 2 * 8 + lane() / 4, p_.m - 1) * p_.part.residual_stride);
  }
  __device__ __forceinline__ void write_pairs(const Piece& piece, bool has_residual,
                                              const uint32_t (&added)[kPiecePairs]) const {
    auto* const to = static_cast<__nv_bfloat16*>(p_.part.out) + piece.row + lane() % 4 * 2;
    float y[kPieceSums];
#pragma unroll
    for (int i = 0; i < kPieceSums; ++i) y[i] = piece.sum[i];
    if (has_residual)
#pragma unroll
      for (int i = 0; i < kPiecePairs; ++i) {
        const uint32_t pair = transpose_pairs(added[i]);
        y[2 * i] += __uint_as_float(pair << 16), y[2 * i + 1] += __uint_as_float(pair & 0xFFFF0000);
      }
#pragma unroll
    for (int i = 0; i < kPiecePairs; ++i) {
      const __nv_bfloat162 rounded(narrow<__nv_bfloat16>(y[2 * i]), narrow<__nv_bfloat16>(y[2 * i + 1]));
      const uint32_t pair = transpose_pairs(reinterpret_cast<const uint32_t&>(rounded));
      const int token = piece.token + i / 2 * 8 + lane() / 4;
      if (token < p_.m) *reinterpret_cast<uint32_t*>(to + i % 2 * 8 + token * p_.part.out_stride) = pair;
    }
  }
  template <class T>
  __device__ __forceinline__ void write_each(const Piece& piece) const {
    const NarrowPart& part = p_.part;
#pragma unroll
    for (int i = 0; i < kPieceSums; ++i) {
      const int token = piece.token + i / 4 * 8 + lane() % 4 * 2 + i % 2, row = piece.row + lane() / 4 + i / 2 % 2 * 8;
      if (token >= p_.m || row >= part.n) continue;
      const float more = part.residual == nullptr
                             ? 0
                             : widen(static_cast<const T*>(part.residual)[token * part.residual_stride + row]);
      static_cast<T*>(part.out)[token * part.out_stride + row] = narrow<T>(piece.sum[i] + more);
    }
  }

  const WideParams& p_;
  const uint32_t shared_, barriers_;  // addresses in shared memory; of full, then of empty
  const uint4* const tables_;
};

template <class Codec, class Config>
__global__ void __launch_bounds__(WideShape<Codec, Config>::kThreads, 1)
    linear_nibble_wide_kernel(const __grid_constant__ WideParams p, const __grid_constant__ WideMaps maps) {
  extern __shared__ std::byte raw[];
  using Shape = WideShape<Codec, Config>;
  constexpr int kStages = Shape::kStages;
  // Of each stage full: the copying thread, once, and the bytes; the multipliers wait. Then of each stage empty: each of
  // their warps; that thread waits.
  __shared__ MBarrier barriers[2 * kStages];
  __shared__ uint4 tables[16];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barriers[i].init(1), barriers[kStages + i].init(Shape::kMultipliers / 32);
    fence_barrier_init();
  }
  fill_zero_tables(tables);
  __syncthreads();
  pdl_launch_next();
  WideBlock<Codec, Config> block(p, shared, tables, barriers);
  if (threadIdx.x < Shape::kMultipliers) {
    if constexpr (Shape::kMovesRegisters) take_registers<Shape::kRegisters>();
    block.multiply();
  } else {
    if constexpr (Shape::kMovesRegisters) give_registers<kWideCopyRegisters>();
    if (threadIdx.x == Shape::kMultipliers) block.copy(maps);
  }
}

}  // namespace hearth::sm90
