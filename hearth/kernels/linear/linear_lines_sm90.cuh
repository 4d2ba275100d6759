// SPDX-License-Identifier: Apache-2.0
// The product of few tokens in INT8 and weights of bitvectors in units (line_units.h). A block a multiprocessor, of one
// weight; its teams of warps take strips of 16 rows of W in turns, W as the M side of the MMA and tokens the N side.
//   A warp has its own part of K and of shared memory, a ring of pieces of some units, which its lane 0 fills by the
//     copy engine; the first ones, and the weight's table, are asked for before the kernels in front have ended.
//   x comes rounded and arranged (arrange_groups_sm90.h): all of it in shared memory, or, where that is too much, each
//     warp reads what it multiplies next from L2.
//   Another warp ends a team's strips: adds the warps' sums in their order, and writes.
// The sums of a unit are integers and exact; scales of line and x are multiplied with them in f32, and units are added
// in their order. How K is shared among warps does not depend on the number of tokens.
#pragma once

#include "hearth/kernels/linear/line_units.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tma.cuh"

namespace hearth::sm90 {

constexpr int kLineMostRows = 16;
constexpr int kLineMostParts = 3;
constexpr int kLineTokens = 8;     // of an MMA's output
constexpr int kLineMostSlots = 3;  // more are no faster: docs/kernels/linear-sbvr-sm90.md
constexpr int kLineTeams = 2, kLineTeamWarps = 8, kLineWarps = kLineTeams * kLineTeamWarps;
constexpr int kLineMultipliers = 32 * kLineWarps, kLineThreads = kLineMultipliers + 32 * kLineTeams;
constexpr int kLineSumStride = kUnitRows + 1;
constexpr int kLineSharedBytes = 227 * 1024 - kSharedLeft;  // of a block, barriers included

struct LinePart {
  const uint8_t* units;
  const UnitLine* table;
  int lines, n, strips;
  int first_block, blocks;      // of the grid
  const void *bias, *residual;  // or null; the residual of out's type
  void* out;
  int64_t residual_stride, out_stride;  // elements
  DType bias_dtype, out_dtype;
};

struct LineParams {
  LinePart part[kLineMostParts];
  int parts;
  int m, unit_columns;
  int most_lines;      // of a weight
  const std::byte* x;  // arranged
  int piece, slots;
};

// x of m tokens as it is multiplied, for each unit of K:
//   codes [half 0..1][token][q 0..3][4 words]: columns 64 half + 4 q.. + 3 and those 32, 16 and 48 behind
// and behind all of them scales [unit][8 or 16 tokens] f32.
HEARTH_HOST_DEVICE constexpr int arranged_tokens(int m) { return m <= kLineTokens ? kLineTokens : 2 * kLineTokens; }
HEARTH_HOST_DEVICE constexpr int arranged_bytes(int unit_columns, int m) {
  return unit_columns * (m * kUnitColumns + arranged_tokens(m) * 4);
}

template <int kTilesOf, bool kFarXOf>
struct LineShape {
  static constexpr int kTiles = kTilesOf;
  static constexpr bool kFarX = kFarXOf;  // x stays in global memory
  static constexpr int kTokens = kTiles * kLineTokens;
  static constexpr int kSums = kLineTeamWarps * kTokens * kLineSumStride;  // of a team
  static constexpr int kSumBytes = kLineTeams * kSums * 4;
  static_assert(kSumBytes % 128 == 0);
  // Before the rings: the table, x, sums.
  HEARTH_HOST_DEVICE static constexpr int fixed_bytes(const LineParams& p) {
    return p.most_lines * static_cast<int>(sizeof(UnitLine)) + kSumBytes +
           (kFarX ? 0 : arranged_bytes(p.unit_columns, p.m));
  }
};

struct LineBarriers {
  MBarrier full[kLineWarps][kLineMostSlots];  // a warp's piece is there: its lane 0, and the bytes
  MBarrier sums_full[kLineTeams];             // a team's sums are there: its threads arrive
  MBarrier sums_empty[kLineTeams];            // and have been read: the warp that ends strips arrives
  MBarrier table, x;                          // are there: one thread, and the bytes
};

template <class Shape>
class LineBlock {
 public:
  static constexpr int kTiles = Shape::kTiles;

  __device__ LineBlock(const LineParams& p, std::byte* shared, LineBarriers& barriers)
      : p_(p),
        barriers_(barriers),
        part_(part_of(p)),
        table_(shared),
        x_(shared + p.most_lines * static_cast<int>(sizeof(UnitLine))),
        sums_(reinterpret_cast<float*>(shared + Shape::fixed_bytes(p) - Shape::kSumBytes)),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        in_team_(warp_ % kLineTeamWarps),
        begin_(p.unit_columns * in_team_ / kLineTeamWarps),
        end_(p.unit_columns * (in_team_ + 1) / kLineTeamWarps),
        piece_bytes_(p.piece * kLineUnitBytes),
        ring_(shared + Shape::fixed_bytes(p) + warp_ * p.slots * piece_bytes_) {
    if constexpr (Shape::kFarX) x_ = p.x;
  }

  // Lane 0 of a multiplying warp.
  __device__ void begin_copies() {
    for (int i = 0; i < p_.slots; ++i) barriers_.full[warp_][i].init(1);
    fence_barrier_init();
    asked_ = {begin_ < end_ ? first_strip(team()) : part_.strips, begin_};
#pragma unroll 1
    for (int i = 0; i < p_.slots; ++i) ask(i, 0);
  }
  // One thread of those that end strips.
  __device__ void copy_table() {
    barriers_.table.init(1), barriers_.x.init(1);
    fence_barrier_init();
    const int bytes = part_.lines * static_cast<int>(sizeof(UnitLine));
    barriers_.table.arrive_and_expect(bytes);
    copy_bulk(table_, part_.table, bytes, barriers_.table);
  }
  // The same one, behind pdl_wait().
  __device__ void copy_x() {
    if constexpr (Shape::kFarX) return;
    const int bytes = arranged_bytes(p_.unit_columns, p_.m);
    barriers_.x.arrive_and_expect(bytes);
    copy_bulk(const_cast<std::byte*>(x_), p_.x, bytes, barriers_.x);
  }

  __device__ void multiply() {
    const Lane place(lane_, p_.m);
    X x;
    if (Shape::kFarX && begin_ < end_) x.load(x_of(begin_), place);
    if (!Shape::kFarX) barriers_.x.wait(0);
    barriers_.table.wait(0);
    int slot = 0, parity = 0, sums_parity = 1;
    for (int strip = first_strip(team()); strip < part_.strips; strip += strip_step()) {
      float total[kTiles][4] = {};
      for (int unit = begin_; unit < end_; unit += p_.piece) {
        barriers_.full[warp_][slot].wait(parity);
        const std::byte* at = ring_ + slot * piece_bytes_;
        const int count = min(p_.piece, end_ - unit);
#pragma unroll 1
        for (int i = 0; i < count; ++i, at += kLineUnitBytes) {
          const int next = unit + i + 1 < end_ ? unit + i + 1 : begin_;
          multiply_unit(at, x, x_of(Shape::kFarX ? next : unit + i), place, total);
        }
        uint32_t outcome = 0;
#pragma unroll
        for (int i = 0; i < kTiles * 4; ++i) outcome |= __float_as_uint(total[i / 4][i % 4]);
        __syncwarp();
        if (lane_ == 0) ask(slot, outcome & threadIdx.z);  // our blocks have one dimension; ptxas does not know it
        if (++slot == p_.slots) slot = 0, parity ^= 1;
      }
      barriers_.sums_empty[team()].wait(sums_parity);
      sums_parity ^= 1;
      leave(total);
      barriers_.sums_full[team()].arrive();
    }
  }

  // The warp that ends the strips of team `team`.
  __device__ void end_strips(int team) {
    int parity = 0;
    for (int strip = first_strip(team); strip < part_.strips; strip += strip_step(), parity ^= 1)
      end_strip(team, strip, parity);
  }

 private:
  struct Asked {
    int strip, unit;
  };
  // Where a lane's part of a unit lies, and of x.
  struct Lane {
    int codes, lines, tokens[kTiles], half, scales;
    __device__ __forceinline__ Lane(int lane, int m)
        : codes(lane * 16), lines(kUnitCodeBytes + lane / 4 * 4), half(m * 64), scales(lane % 4 * 8) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int token = lane / 4 + t * kLineTokens;  // one that does not exist: whatever it gives is not written
        tokens[t] = (token < m ? token : 0) * 64 + lane % 4 * 16;
      }
    }
  };
  struct XPlace {
    const std::byte *codes, *scales;
  };
  // Of a unit's columns, and their scales of the tokens in D's columns.
  struct X {
    uint4 codes[2][kTiles];
    float2 scale[kTiles];

    __device__ __forceinline__ void load_half(int half, const XPlace& from, const Lane& lane) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) codes[half][t] = get<uint4>(from.codes + half * lane.half + lane.tokens[t]);
    }
    __device__ __forceinline__ void load_scales(const XPlace& from, const Lane& lane) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) scale[t] = get<float2>(from.scales + t * kLineTokens * 4 + lane.scales);
    }
    __device__ __forceinline__ void load(const XPlace& from, const Lane& lane) {
      load_half(0, from, lane), load_half(1, from, lane), load_scales(from, lane);
    }
    template <class T>
    __device__ __forceinline__ static T get(const std::byte* from) {
      const auto* const at = reinterpret_cast<const T*>(from);
      return Shape::kFarX ? __ldcg(at) : *at;
    }
  };

  __device__ __forceinline__ int team() const { return warp_ / kLineTeamWarps; }
  __device__ __forceinline__ static const LinePart& part_of(const LineParams& p) {
    int part = 0;
    while (part + 1 < p.parts && static_cast<int>(blockIdx.x) >= p.part[part + 1].first_block) ++part;
    return p.part[part];
  }
  __device__ __forceinline__ int first_strip(int team) const {
    return static_cast<int>(blockIdx.x) - part_.first_block + team * part_.blocks;
  }
  __device__ __forceinline__ int strip_step() const { return kLineTeams * part_.blocks; }

  __device__ __forceinline__ XPlace x_of(int unit) const {
    return {x_ + unit * p_.m * kUnitColumns, x_ + p_.unit_columns * p_.m * kUnitColumns + unit * Shape::kTokens * 4};
  }

  // Lane 0. `behind`: 0, that depends on what was loaded from the slot before.
  __device__ __forceinline__ void ask(int slot, uint32_t behind) {
    if (asked_.strip >= part_.strips) return;
    const int bytes = min(p_.piece, end_ - asked_.unit) * kLineUnitBytes;
    MBarrier& full = barriers_.full[warp_][slot];
    full.arrive_and_expect(bytes);
    copy_bulk_once(ring_ + slot * piece_bytes_ + behind,
                   part_.units + (int64_t{asked_.strip} * p_.unit_columns + asked_.unit) * kLineUnitBytes, bytes, full);
    asked_.unit += p_.piece;
    if (asked_.unit >= end_) asked_.unit = begin_, asked_.strip += strip_step();
  }

  // Numbers of a code's lower three bits by a permutation, and bit 3, as 128, times the line's `top`.
  // `from`: the unit's x, or where x stays far, what `x` is to hold afterwards.
  __device__ __forceinline__ void multiply_unit(const std::byte* unit, X& x, const XPlace& from, const Lane& lane,
                                                float (&total)[kTiles][4]) const {
    const uint32_t lines = *reinterpret_cast<const uint32_t*>(unit + lane.lines);
    const uint4 line[2] = {*reinterpret_cast<const uint4*>(table_ + (lines & 0xFFFF)),
                           *reinterpret_cast<const uint4*>(table_ + (lines >> 16))};  // UnitLine
    int sum[kTiles][4] = {}, bits[kTiles][4] = {};                                    // bits: 128 each
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!Shape::kFarX) x.load_half(half, from, lane);
      const uint4 codes = *reinterpret_cast<const uint4*>(unit + half * (kUnitCodeBytes / 2) + lane.codes);
      const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
      uint32_t first[4], last[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t index = word[i] & 0x77777777u;
        first[i] = permute_bytes(line[i % 2].x, line[i % 2].y, index);
        last[i] = permute_bytes(line[i % 2].x, line[i % 2].y, index >> 16);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma_s8(sum[t], first, x.codes[half][t].x, x.codes[half][t].y);
        mma_s8(sum[t], last, x.codes[half][t].z, x.codes[half][t].w);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) first[i] = word[i] & 0x80808080u, last[i] = word[i] << 4 & 0x80808080u;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        mma_u8_s8(bits[t], first, x.codes[half][t].x, x.codes[half][t].y);
        mma_u8_s8(bits[t], last, x.codes[half][t].z, x.codes[half][t].w);
      }
      if (Shape::kFarX) x.load_half(half, from, lane);
    }
    if (!Shape::kFarX) x.load_scales(from, lane);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // At most 127 x 127 x 128 times 128: in 32 bits, and exact in f32.
        const int all = sum[t][i] * 128 + static_cast<int>(line[i / 2].z) * bits[t][i];
        const float scale = __uint_as_float(line[i / 2].w) * (i % 2 == 0 ? x.scale[t].x : x.scale[t].y);
        total[t][i] = fmaf(static_cast<float>(all), scale, total[t][i]);
      }
    if (Shape::kFarX) x.load_scales(from, lane);
  }

  // For the warp that ends the strip.
  __device__ __forceinline__ void leave(const float (&total)[kTiles][4]) const {
    float* const sums = sums_ + team() * Shape::kSums + in_team_ * (Shape::kTokens * kLineSumStride);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = t * kLineTokens + lane_ % 4 * 2 + i % 2, row = lane_ / 4 + i / 2 * 8;
        sums[token * kLineSumStride + row] = total[t][i];
      }
  }

  __device__ void end_strip(int team, int strip, int parity) {
    constexpr int kElements = Shape::kTokens / 2;
    const int first_token = lane_ / kUnitRows, row_in_strip = lane_ % kUnitRows;
    const LinePart& part = part_;
    const int row = strip * kUnitRows + row_in_strip;
    const auto writes = [&](int i) { return first_token + 2 * i < p_.m && row < part.n; };
    // Asked for now, needed after the strip's last unit.
    uint32_t bias = 0, residual[kElements] = {};
    if (part.bias != nullptr && writes(0)) bias = stored_at(part.bias, part.bias_dtype, row);
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      if (part.residual != nullptr && writes(i))
        residual[i] = stored_at(part.residual, part.out_dtype, (first_token + 2 * i) * part.residual_stride + row);
    barriers_.sums_full[team].wait(parity);
    const float* const sums = sums_ + team * Shape::kSums;
    float y[kElements] = {};
#pragma unroll 4
    for (int w = 0; w < kLineTeamWarps; ++w)
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        y[i] += sums[(w * Shape::kTokens + first_token + 2 * i) * kLineSumStride + row_in_strip];
    uint32_t outcome = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) outcome |= __float_as_uint(y[i]);
    barriers_.sums_empty[team].arrive_behind_loads(outcome);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (!writes(i)) continue;
      if (part.bias != nullptr) y[i] += value_of_stored(bias, part.bias_dtype);
      if (part.residual != nullptr) y[i] += value_of_stored(residual[i], part.out_dtype);
      const int64_t at = (first_token + 2 * i) * part.out_stride + row;
      if (part.out_dtype == DType::kF32) {
        static_cast<float*>(part.out)[at] = y[i];
      } else {
        static_cast<__nv_bfloat16*>(part.out)[at] = __float2bfloat16_rn(y[i]);
      }
    }
  }

  const LineParams& p_;
  LineBarriers& barriers_;
  const LinePart& part_;
  std::byte* const table_;
  const std::byte* x_;
  float* const sums_;
  const int warp_, lane_, in_team_;
  const int begin_, end_;  // the warp's units of K
  const int piece_bytes_;
  std::byte* const ring_;
  Asked asked_;  // lane 0: what it asks for next
};

template <class Shape>
__global__ void __launch_bounds__(kLineThreads, 1) linear_lines_kernel(const __grid_constant__ LineParams p) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ LineBarriers barriers;
  LineBlock<Shape> block(p, shared, barriers);
  const bool multiplies = threadIdx.x < kLineMultipliers;
  const int ended = static_cast<int>(threadIdx.x) / 32 - kLineWarps;  // the team whose strips this warp ends
  const bool copies = threadIdx.x == kLineMultipliers;
  if (threadIdx.x % 32 == 0) {
    if (multiplies) {
      block.begin_copies();
    } else {
      barriers.sums_full[ended].init(32 * kLineTeamWarps), barriers.sums_empty[ended].init(32);
      fence_barrier_init();
    }
  }
  if (copies) block.copy_table();
  __syncthreads();
  pdl_launch_next();
  pdl_wait();
  if (copies) block.copy_x();
  if (multiplies) {
    block.multiply();
  } else {
    __syncwarp();
    block.end_strips(ended);
  }
}

}  // namespace hearth::sm90
