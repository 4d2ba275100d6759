// SPDX-License-Identifier: Apache-2.0
// The kernel of linear_lines_wide_sm90.h. A warp copies, two units of K of W and of the tokens a stage, and once the
// table of lines; two or four warpgroups multiply, each 64 rows of W by all tokens of the tile, W from registers: shared
// memory gives units, linear_lines_fragments_sm90.cuh the fragments. A unit's sums are integers; times the scales of line
// and token they are added to a tile's in f32. Which tiles a block has, and which of them in part:
// linear_nibble_wide_plan_sm90.cuh. Sums of a tile that blocks share meet in global memory, each warpgroup's for itself.
#pragma once

#include "hearth/kernels/linear/line_units.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_lines_fragments_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/linear/linear_nibble_wide_plan_sm90.cuh"
#include "hearth/kernels/sm90/block.cuh"
#include "hearth/kernels/sm90/flags.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"

namespace hearth::sm90 {

constexpr int kLineWideTeamThreads = 128, kLineWideTeamRows = 64;
constexpr int kLineWideRowTeams = 2, kLineWideRows = kLineWideRowTeams * kLineWideTeamRows;
constexpr int kLineWideUnits = 2;  // of K in a stage
constexpr int kLineWideMostTeams = 4, kLineWideBarrierOfTeams = 1 + kLineWideMostTeams;
constexpr int kLineWideTableBytes = kMostUnitLines * static_cast<int>(sizeof(UnitLine));

struct LineWideMaps {
  CUtensorMap x, scales, units;
};

struct LineWideParams {
  NarrowPart part;  // weight: units
  const UnitLine* table;
  int lines;
  WidePlan plan;
  int m, token_tiles;  // tiles that follow each other have the same rows of W
  bool in_pairs;       // two rows of out and residual, in bf16, may be moved at once
  float* partial;      // [blocks][teams of rows][sums of a thread][kLineWideTeamThreads]
  uint32_t* ready;     // [blocks][teams of rows]: its partial sums are there
};

// Shared memory: stages (the tokens' rows, swizzled; their scales; then W strip by strip), the table, then sums.
template <int kTokensOf>
struct LineWideShape {
  static constexpr int kTokens = kTokensOf;
  // Few tokens' sums leave room for four warpgroups: two have the same rows, each one of a stage's units.
  static constexpr bool kSplitsK = kTokens <= 64;
  static constexpr int kTeams = kSplitsK ? 2 * kLineWideRowTeams : kLineWideRowTeams;
  static constexpr int kMultipliers = kTeams * kLineWideTeamThreads;
  // Sums of 64 tokens and more take all registers: the copying warp is then a warpgroup, which gives its own away. With
  // fewer, small kernels find room beside the block.
  static constexpr bool kMovesRegisters = kTokens > 32;
  static constexpr int kRegisters = kSplitsK ? 112 : 240, kCopyRegisters = 24;
  static constexpr int kThreads = kMultipliers + (kMovesRegisters ? 128 : 32);
  static constexpr int kStrips = kLineWideRows / kUnitRows, kStripBytes = kLineWideUnits * kLineUnitBytes;
  static constexpr int kTokenBytes = kTokens * kUnitColumns;  // of a unit
  static constexpr int kScalesAt = kLineWideUnits * kTokenBytes;
  static constexpr int kWeightAt = kScalesAt + kLineWideUnits * kTokens * 4;
  static constexpr int kCopiedBytes = kWeightAt + kStrips * kStripBytes;
  static constexpr int kStageBytes = (kCopiedBytes + 1023) / 1024 * 1024;
  static constexpr int kJoinBytes = kSplitsK ? kLineWideRows * kTokens * 4 : 0;
  static constexpr int kStages = (227 * 1024 - kSharedLeft - 2048 - kLineWideTableBytes - kJoinBytes) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kLineWideTableBytes + kJoinBytes + 1024;
  static_assert(kStages >= 2 && kWeightAt % 128 == 0);
};

template <int kTokensOf>
class LineWideBlock {
 public:
  using Shape = LineWideShape<kTokensOf>;
  static constexpr int kTokens = kTokensOf, kUnits = kLineWideUnits;
  static constexpr int kStages = Shape::kStages, kSums = kTokens / 2, kSlices = 4;

  __device__ LineWideBlock(const LineWideParams& p, std::byte* shared, MBarrier* barriers)
      : p_(p), shared_(shared_address_once(shared)), barriers_(shared_address_once(barriers)) {}

  // One thread.
  __device__ void copy(const LineWideMaps& maps) {
    const int held = min(kStages, p_.plan.units(block_here()));
    for_each_stage([&](int at, int stage, int, int row, int, int chunk) {
      if (at < held) copy_weight(maps, stage, row, chunk);
      if (at == 0) {
        const int bytes = p_.lines * static_cast<int>(sizeof(UnitLine));
        table_full().arrive_and_expect(bytes);
        copy_bulk(generic(table()), p_.table, bytes, table_full());
      }
    });
    pdl_wait();
    for_each_stage([&](int at, int stage, int parity, int row, int token, int chunk) {
      if (at >= held) {
        empty(stage).wait_or_fault(parity ^ 1);
        copy_weight(maps, stage, row, chunk);
      }
      copy_tensor(generic(stage_at(stage)), maps.x, 0, token, chunk * kUnits, full(stage));
      copy_tensor(generic(stage_at(stage) + Shape::kScalesAt), maps.scales, token / 2, chunk * kUnits, full(stage));
    });
  }

  // The multipliers.
  __device__ void multiply() {
    WideWork work(p_.plan, block_here());
    pdl_wait();
    table_full().wait_or_fault(0);
    Stage stage;
    const Place place = place_here();
    while (work.has_more()) {
      float total[kSums] = {};
      // The same in all lanes, which ptxas sees in what a reduction gives: so the loop's numbers are in uniform registers.
      work.left = static_cast<int>(__reduce_max_sync(~0u, static_cast<unsigned>(work.left)));
      {
        const WideSegment segment = work.here(p_.plan, block_here());
        multiply_stages(place, segment.last - segment.first, stage, total);
      }
      if constexpr (Shape::kSplitsK) join(total);
      // Once more, instead of keeping it meanwhile.
      const WideSegment segment = work.here(p_.plan, block_here());
      if (half() == 0) {
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

  template <class F>
  __device__ __forceinline__ void for_each_stage(const F& f) const {
    int at = 0;
    Stage stage;
    WideWork work(p_.plan, block_here());
#pragma unroll 1
    while (work.has_more()) {
      const WideSegment segment = work.here(p_.plan, block_here());
      const int row_tile = segment.tile / p_.token_tiles, token_tile = segment.tile - row_tile * p_.token_tiles;
#pragma unroll 1
      for (int chunk = segment.first; chunk < segment.last; ++chunk, stage = stage.next())
        f(at++, stage.at, stage.parity, row_tile * kLineWideRows, token_tile * kTokens, chunk);
      work.advance(segment);
    }
  }
  __device__ __forceinline__ MBarrier& full(int stage) const {
    return *static_cast<MBarrier*>(__cvta_shared_to_generic(barriers_ + stage * sizeof(MBarrier)));
  }
  __device__ __forceinline__ MBarrier& empty(int stage) const { return full(kStages + stage); }
  __device__ __forceinline__ MBarrier& table_full() const { return full(2 * kStages); }
  __device__ __forceinline__ static std::byte* generic(uint32_t address) {
    return static_cast<std::byte*>(__cvta_shared_to_generic(address));
  }
  template <class T>
  __device__ __forceinline__ static T get(uint32_t address) {
    return *reinterpret_cast<const T*>(generic(address));
  }
  __device__ __forceinline__ uint32_t stage_at(int stage) const { return shared_ + stage * Shape::kStageBytes; }
  __device__ __forceinline__ uint32_t table() const { return stage_at(kStages); }
  // Asked for where they are used, for the main loop has no registers for them.
  __device__ __forceinline__ static int team() { return thread_here() / kLineWideTeamThreads; }
  // Which rows it has, and which of a stage's units.
  __device__ __forceinline__ static int row_team() { return team() % kLineWideRowTeams; }
  __device__ __forceinline__ static int half() { return team() / kLineWideRowTeams; }
  __device__ __forceinline__ static int warp() { return thread_here() % kLineWideTeamThreads / 32; }
  __device__ __forceinline__ static int lane() { return thread_here() % 32; }
  __device__ __forceinline__ void team_barrier() const { named_barrier(1 + team(), kLineWideTeamThreads); }
  __device__ __forceinline__ bool leads() const { return thread_here() % kLineWideTeamThreads == 0; }

  // The tokens' bytes are expected with them. What does not exist arrives as zeros.
  __device__ __forceinline__ void copy_weight(const LineWideMaps& maps, int stage, int row, int chunk) {
    full(stage).arrive_and_expect(Shape::kCopiedBytes);
    std::byte* const to = generic(stage_at(stage) + Shape::kWeightAt);
    if (p_.token_tiles == 1) {
      copy_tensor_once(to, maps.units, 0, chunk * kUnits, row / kUnitRows, full(stage));
    } else {
      copy_tensor(to, maps.units, 0, chunk * kUnits, row / kUnitRows, full(stage));
    }
  }

  // A warpgroup's first row of W.
  __device__ __forceinline__ int first_row_of(int tile) const {
    return tile / p_.token_tiles * kLineWideRows + row_team() * kLineWideTeamRows;
  }

  // Where a lane's part of a stage lies: of the first unit codes and lines of its rows, and scales of its tokens.
  struct Place {
    uint32_t codes, lines, scales;
  };
  __device__ __forceinline__ static Place place_here() {
    const auto thread = static_cast<uint32_t>(thread_here()), lane = thread % 32;
    const uint32_t strip =
        Shape::kWeightAt + thread / 32 % (kLineWideRows / kUnitRows) * static_cast<uint32_t>(Shape::kStripBytes);
    return {strip + lane * 16, strip + kUnitCodeBytes + lane / 4 * 4, Shape::kScalesAt + lane % 4 * 8};
  }
  // Fragments of the lane's rows r and r + 8 of a unit; their lines' scales.
  struct Fragments {
    uint32_t at[kSlices][4];
    float scale[2];
  };
  __device__ __forceinline__ void decode(const Place& place, const Stage& stage, int i, Fragments& a) const {
    const uint32_t unit = stage_at(stage.at) + i * kLineUnitBytes;
    const uint32_t lines = get<uint32_t>(unit + place.lines);
    const LineFragments low(get<uint4>(table() + (lines & 0xFFFF))), high(get<uint4>(table() + (lines >> 16)));
    a.scale[0] = low.scale, a.scale[1] = high.scale;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const uint4 words = get<uint4>(unit + place.codes + v * (kUnitCodeBytes / 2));
      low.decode(words.x, a.at[2 * v][0], a.at[2 * v][2]);
      high.decode(words.y, a.at[2 * v][1], a.at[2 * v][3]);
      low.decode(words.z, a.at[2 * v + 1][0], a.at[2 * v + 1][2]);
      high.decode(words.w, a.at[2 * v + 1][1], a.at[2 * v + 1][3]);
    }
    // Else ptxas 13.0 decodes between the products, in registers of words (C7519).
    pin_registers(a.at);
  }
  __device__ __forceinline__ void start(const Stage& stage, int i, Fragments& a, int32_t (&sum)[kSums]) const {
    // Operands differ in the address alone, the lowest 14 bits.
    const uint64_t first_tokens = wgmma_operand(shared_);
    const uint32_t tokens =
        static_cast<uint32_t>(first_tokens) + (stage.at * Shape::kStageBytes + i * Shape::kTokenBytes) / 16;
    wgmma_begin();
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice)
      wgmma_s8<kTokens>(sum, a.at[slice], (first_tokens & ~uint64_t{0xFFFFFFFF}) | (tokens + slice * 2), slice > 0);
    wgmma_commit();
  }
  // Adds a unit's sums to the tile's; `is_last`: of those that this warpgroup takes of the stage.
  __device__ __forceinline__ void add(const Place& place, const Stage& stage, int i, bool is_last,
                                      const float (&line_scale)[2], const int32_t (&sum)[kSums],
                                      float (&total)[kSums]) const {
    // Lane 4 r + q has tokens 2 q and 2 q + 1 of each 8.
    const uint32_t at = stage_at(stage.at) + i * kTokens * 4 + place.scales;
    float2 scale[kTokens / 8];
    uint32_t outcome = 0;
#pragma unroll
    for (int t = 0; t < kTokens / 8; ++t) {
      scale[t] = get<float2>(at + t * 32);
      outcome ^= __float_as_uint(scale[t].x);
    }
    if (is_last && elect_lane()) empty(stage.at).arrive_behind_loads(outcome);
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int s = 0; s < kSums / 2; ++s) {
        const int here = s / 2 * 4 + row * 2 + s % 2;
        total[here] = fmaf(static_cast<float>(sum[here]),
                           line_scale[row] * (s % 2 == 0 ? scale[s / 2].x : scale[s / 2].y), total[here]);
      }
  }

  // The sums of `unit`, whose fragments are there, while those of the next one are decoded, where there is one.
  struct Unit {
    Stage stage;
    int i;
  };
  __device__ __forceinline__ void step(const Place& place, const Unit& unit, const Unit& next, bool has_next,
                                       Fragments& here, Fragments& ahead, float (&total)[kSums]) {
    int32_t sum[kSums];  // the first product writes it
    start(unit.stage, unit.i, here, sum);
    if (has_next) {
      if (next.stage.at != unit.stage.at) full(next.stage.at).wait_or_fault(next.stage.parity);
      decode(place, next.stage, next.i, ahead);
    }
    wgmma_wait<0>();
    pin_registers(sum);
    pin_registers(here.at);
    add(place, unit.stage, unit.i, Shape::kSplitsK || unit.i + 1 == kUnits, here.scale, sum, total);
  }
  __device__ __forceinline__ void multiply_stages(const Place& place, int left, Stage& stage, float (&total)[kSums]) {
    static_assert(kUnits == 2);
    // The same in all lanes: see multiply().
    const int first_unit = Shape::kSplitsK ? __shfl_sync(~0u, half(), 0) : 0;
    Fragments first, second;
    if constexpr (Shape::kSplitsK) {
      // Other warpgroups' products run meanwhile.
      for (; left > 0; --left, stage = stage.next()) {
        full(stage.at).wait_or_fault(stage.parity);
        decode(place, stage, first_unit, first);
        step(place, {stage, first_unit}, {}, false, first, first, total);
      }
    } else {
      full(stage.at).wait_or_fault(stage.parity);
      decode(place, stage, 0, first);
      for (; left > 0; --left) {
        const Stage next = stage.next();
        step(place, {stage, 0}, {stage, 1}, true, first, second, total);
        step(place, {stage, 1}, {next, 0}, left > 1, second, first, total);
        stage = next;
      }
    }
  }

  // Sums of the warpgroups with the same rows, in the first one's registers.
  __device__ __forceinline__ void join(float (&total)[kSums]) const {
    auto* const at = reinterpret_cast<float*>(generic(table() + kLineWideTableBytes)) +
                     row_team() * (kSums * kLineWideTeamThreads) + thread_here() % kLineWideTeamThreads;
    if (half() > 0)
#pragma unroll
      for (int i = 0; i < kSums; ++i) at[i * kLineWideTeamThreads] = total[i];
    named_barrier(kLineWideBarrierOfTeams, Shape::kMultipliers);
    if (half() == 0)
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += at[i * kLineWideTeamThreads];
    named_barrier(kLineWideBarrierOfTeams, Shape::kMultipliers);  // before it is written again
  }

  __device__ float* partial_of(int block) const {
    return p_.partial + (int64_t{block} * kLineWideRowTeams + team()) * (kSums * kLineWideTeamThreads) +
           thread_here() % kLineWideTeamThreads;
  }
  __device__ uint32_t* ready_of(int block) const { return p_.ready + block * kLineWideRowTeams + team(); }
  // For the block that ends the tile.
  __device__ void leave(const float (&total)[kSums]) {
    const int block = block_here();
    float* const to = partial_of(block);
#pragma unroll
    for (int i = 0; i < kSums; ++i) to[i * kLineWideTeamThreads] = total[i];
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
      for (int i = 0; i < kSums; ++i) total[i] += __ldcg(from + i * kLineWideTeamThreads);
    }
  }

  // A tile's rows of out, 32 tokens at once.
  static constexpr int kPieceTokens = 32, kPieceEights = kPieceTokens / 8;
  __device__ __forceinline__ void write(int tile, float (&total)[kSums]) const {
    const NarrowPart& part = p_.part;
    const int first_token = tile % p_.token_tiles * kTokens, row = first_row_of(tile) + warp() * kUnitRows;
    if (row >= part.n) return;
    if (part.bias != nullptr) {
      float bias[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        bias[i] = number_at(part.bias, part.bias_dtype, min(row + lane() / 4 + i * 8, part.n - 1));
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += bias[i / 2 % 2];
    }
    if (part.out_dtype == DType::kF32) {
      write_each<float>(row, first_token, total);
    } else if (p_.in_pairs && row + kUnitRows <= part.n) {
      write_pairs(row, first_token, total);
    } else {
      write_each<__nv_bfloat16>(row, first_token, total);
    }
  }
  // Lane 4 r + q has, of rows r and r + 8, tokens 2 q and 2 q + 1 of each 8; in pairs, lane 4 t + q rows 2 q and 2 q + 1
  // of token t of 8, and those 8 behind.
  __device__ __forceinline__ void write_pairs(int row, int first_token, const float (&total)[kSums]) const {
    const NarrowPart& part = p_.part;
    int token = first_token + lane() / 4;
    const int64_t in_row = row + lane() % 4 * 2, last = p_.m - 1;
    auto* to = static_cast<__nv_bfloat16*>(part.out) + token * part.out_stride + in_row;
    const auto* const residual = static_cast<const __nv_bfloat16*>(part.residual);
    const int64_t step = 8 * part.out_stride;
#pragma unroll
    for (int piece = 0; piece < kTokens / kPieceTokens; ++piece) {
      uint32_t added[kPieceEights][2] = {};
      if (residual != nullptr)
#pragma unroll
        for (int t = 0; t < kPieceEights; ++t) {
          const auto* const from = residual + min(int64_t{token} + 8 * t, last) * part.residual_stride + in_row;
          added[t][0] = *reinterpret_cast<const uint32_t*>(from);
          added[t][1] = *reinterpret_cast<const uint32_t*>(from + 8);
        }
#pragma unroll
      for (int t = 0; t < kPieceEights; ++t) {
        const float* const sums = total + (piece * kPieceEights + t) * 4;
        uint32_t pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float low = sums[2 * i], high = sums[2 * i + 1];
          if (residual != nullptr) {
            const uint32_t more = transpose_pairs(added[t][i]);
            low += __uint_as_float(more << 16), high += __uint_as_float(more & 0xFFFF0000);
          }
          pair[i] = transpose_pairs(pack_bf16(low, high));
        }
        if (token < p_.m) {
          *reinterpret_cast<uint32_t*>(to) = pair[0];
          *reinterpret_cast<uint32_t*>(to + 8) = pair[1];
        }
        token += 8, to += step;
      }
    }
  }
  template <class T>
  __device__ __forceinline__ void write_each(int row, int first_token, const float (&total)[kSums]) const {
    const NarrowPart& part = p_.part;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int token = first_token + i / 4 * 8 + lane() % 4 * 2 + i % 2, here = row + lane() / 4 + i / 2 % 2 * 8;
      if (token >= p_.m || here >= part.n) continue;
      const float more = part.residual == nullptr
                             ? 0
                             : widen(static_cast<const T*>(part.residual)[token * part.residual_stride + here]);
      static_cast<T*>(part.out)[token * part.out_stride + here] = narrow<T>(total[i] + more);
    }
  }

  const LineWideParams& p_;
  const uint32_t shared_, barriers_;  // addresses in shared memory; of full, then of empty, then of the table
};

template <int kTokens>
__global__ void __launch_bounds__(LineWideShape<kTokens>::kThreads, 1)
    linear_lines_wide_kernel(const __grid_constant__ LineWideParams p, const __grid_constant__ LineWideMaps maps) {
  extern __shared__ std::byte raw[];
  using Shape = LineWideShape<kTokens>;
  constexpr int kStages = Shape::kStages;
  // Of each stage full: the copying thread, once, and the bytes; the multipliers wait. Then of each stage empty: each of
  // their warps; that thread waits. Then of the table, as full.
  __shared__ MBarrier barriers[2 * kStages + 1];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barriers[i].init(1), barriers[kStages + i].init(Shape::kMultipliers / 32);
    barriers[2 * kStages].init(1);
    fence_barrier_init();
  }
  __syncthreads();
  pdl_launch_next();
  LineWideBlock<kTokens> block(p, shared, barriers);
  if (threadIdx.x < Shape::kMultipliers) {
    if constexpr (Shape::kMovesRegisters) take_registers<Shape::kRegisters>();
    block.multiply();
  } else {
    if constexpr (Shape::kMovesRegisters) give_registers<Shape::kCopyRegisters>();
    if (threadIdx.x == Shape::kMultipliers) block.copy(maps);
  }
}

}  // namespace hearth::sm90
