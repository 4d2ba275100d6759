// SPDX-License-Identifier: Apache-2.0
// The kernel of linear_nibble_wide_sm90.h. A warp copies, two groups of 128 columns of W and of the tokens a stage; two
// warpgroups multiply, each 64 rows of W by all tokens of the tile, W from registers: shared memory gives units
// (nibble_units.h), a decoder (linear_nibble_fragments_sm90.cuh) the fragments. A group's sums are added to a tile's in f32, times
// its scale. All multiprocessors get the same number of units (tile, two groups), in shares of tiles as in
// linear_stream_sm90.cu and in whole tiles; the warpgroups exchange sums and end tiles each for itself.
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

constexpr int kWideTeams = 2, kWideTeamThreads = 128;
constexpr int kWideHalfRows = 64;  // of W that a warpgroup multiplies at once
constexpr int kWideMultipliers = kWideTeams * kWideTeamThreads;
constexpr int kWideRegisters = 240, kWideCopyRegisters = 24;  // of a thread where they are moved
constexpr int kWideChunkBytes = 128;                          // a row of a swizzled tile in shared memory
constexpr int kWideUnits = 2;                                 // of K in a stage
// Of a strip in a stage, at most: units with scales of f32 and zero points.
constexpr int kWideStripBytes = kWideUnits * (kUnitCodeBytes + kUnitRows * 5);
constexpr int kWideOutTokens = 32;  // that go through shared memory at once on their way out
constexpr int kWideOutStride = kWideHalfRows + 4;
constexpr int kWideOutBytes = kWideTeams * kWideOutTokens * kWideOutStride * 4;
constexpr int kWideVector = 8;  // outputs of a thread at once

struct WideMaps {
  CUtensorMap x;
};

struct WideParams {
  NarrowPart part;  // weight: units
  WidePlan plan;
  int m, token_tiles;  // tiles that follow each other have the same rows of W
  int strips, unit_columns, unit_bytes;
  bool has_zeros;
  const float* x_scale;
  bool in_vectors;  // out and residual may be moved 16 bytes at once
  float* partial;   // [blocks][kWideTeams][sums of a thread][kWideTeamThreads]
  uint32_t* ready;  // [blocks][kWideTeams]: its partial sums are there
};

// kHalves: times 64 rows of W of a warpgroup in a tile. Two of them halve what is read of x.
// Shared memory: stages (the tokens' chunks one behind the other, then W strip by strip), then the warpgroups' outputs.
template <class Codec, int kTokens, int kHalves>
struct WideShape {
  // Many tokens' sums take all registers: the copying warp is then a warpgroup, which gives its own away. With fewer,
  // small kernels find room beside the block.
  static constexpr bool kMovesRegisters = kTokens * kHalves > 64;
  static constexpr int kThreads = kWideMultipliers + (kMovesRegisters ? 128 : 32);
  static constexpr int kTeamRows = kHalves * kWideHalfRows, kRows = kWideTeams * kTeamRows;
  static constexpr int kStrips = kRows / kUnitRows;
  static constexpr int kTokenChunks = Codec::kBf16 ? 4 : 2;  // of a stage
  static constexpr int kTokenBytes = kTokens * kWideChunkBytes;
  static constexpr int kStageBytes = (kStrips * kWideStripBytes + kTokenChunks * kTokenBytes + 1023) / 1024 * 1024;
  // All that a block may have, as linear_stream_sm90.cu.
  static constexpr int kStages = (225 * 1024 - kSharedLeft - kWideOutBytes) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kWideOutBytes + 1024;
  static_assert(kStages >= 2 && kStageBytes % 1024 == 0);
};

template <class Codec, int kTokens, int kHalves>
class WideBlock {
 public:
  using Shape = WideShape<Codec, kTokens, kHalves>;
  static constexpr int kStages = Shape::kStages, kSums = kTokens / 2, kSlices = Codec::kBf16 ? 8 : 4;

  __device__ WideBlock(const WideParams& p, std::byte* shared, const uint4* tables, MBarrier* barriers)
      : p_(p),
        shared_(shared_address_once(shared)),
        tables_(tables),
        barriers_(shared_address_once(barriers)),
        team_(static_cast<int>(threadIdx.x) / kWideTeamThreads),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(static_cast<int>(threadIdx.x) % kWideTeamThreads / 32 * kUnitRows + lane_ / 4) {}

  // One thread.
  __device__ void copy(const WideMaps& maps) {
    const int held = min(kStages, p_.plan.units(block_here()));
    for_each_unit([&](int unit, int stage, int, int row, int, int chunk) {
      if (unit < held) copy_weight(stage, row, chunk);
    });
    pdl_wait();
    for_each_unit([&](int unit, int stage, int parity, int row, int token, int chunk) {
      if (unit >= held) {
        empty(stage).wait_or_fault(parity ^ 1);
        copy_weight(stage, row, chunk);
      }
      copy_tensor(tokens_at(stage), maps.x, 0, token, chunk * Shape::kTokenChunks, full(stage));
    });
  }

  // The multipliers.
  __device__ void multiply() {
    WideWork work(p_.plan, block_here());
    WideSegment segment = work.here(p_.plan, block_here());
    pdl_wait();
    Stage stage;
    for (bool more = true; more;) {
      work.advance(p_.plan, block_here(), segment);
      more = work.has_more(p_.plan, block_here());
      float total[kHalves][kSums] = {};
      for (int chunk = segment.first; chunk < segment.last; ++chunk, stage = stage.next())
        multiply_unit(stage, kWideUnits * chunk + 1 < p_.unit_columns, total);
      if (segment.last < p_.plan.chunks) {
        leave(total);
      } else {
        collect(segment, total);
        write(segment.tile, total);
      }
      if (more) segment = work.here(p_.plan, block_here());
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
  // Of a pass: W's registers, and the scales of rows r and r + 8.
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
    while (work.has_more(p_.plan, block_here())) {
      const WideSegment segment = work.here(p_.plan, block_here());
      const int row_tile = segment.tile / p_.token_tiles, token_tile = segment.tile - row_tile * p_.token_tiles;
      const int row = row_tile * Shape::kRows;
#pragma unroll 1
      for (int chunk = segment.first; chunk < segment.last; ++chunk, stage = stage.next())
        f(unit++, stage.at, stage.parity, row, token_tile * kTokens, chunk);
      work.advance(p_.plan, block_here(), segment);
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
    return tokens_at(stage) + Shape::kTokenChunks * Shape::kTokenBytes;
  }
  __device__ __forceinline__ float* out_at() const {
    return reinterpret_cast<float*>(tokens_at(kStages)) + team_ * kWideOutTokens * kWideOutStride;
  }
  __device__ __forceinline__ void team_barrier() const { named_barrier(1 + team_, kWideTeamThreads); }
  __device__ __forceinline__ bool leads() const { return threadIdx.x % kWideTeamThreads == 0; }

  // The strips and units that exist; the tokens' bytes are expected with them.
  __device__ __forceinline__ void copy_weight(int stage, int row, int chunk) {
    const int first_strip = row / kUnitRows, strips = min(Shape::kStrips, p_.strips - first_strip);
    const int first = kWideUnits * chunk, bytes = min(kWideUnits, p_.unit_columns - first) * p_.unit_bytes;
    full(stage).arrive_and_expect(strips * bytes + Shape::kTokenChunks * Shape::kTokenBytes);
    for (int i = 0; i < strips; ++i) {
      const uint8_t* const from = p_.part.weight + (int64_t{first_strip + i} * p_.unit_columns + first) * p_.unit_bytes;
      std::byte* const to = weight_at(stage) + i * kWideStripBytes;
      if (p_.token_tiles == 1) {
        copy_bulk_once(to, from, bytes, full(stage));
      } else {
        copy_bulk(to, from, bytes, full(stage));
      }
    }
  }

  // A warpgroup's first row of W.
  __device__ __forceinline__ int first_row_of(int tile) const {
    return tile / p_.token_tiles * Shape::kRows + team_ * Shape::kTeamRows;
  }

  // A pass is a group of 64 rows: one chain of products.
  static constexpr int kPasses = 2 * kHalves;

  // What pass `pass` of the units in `stage` multiplies.
  __device__ __forceinline__ void load(int stage, int pass, bool has_second, Fragments& a) const {
    const int group = pass / kHalves, half = pass % kHalves;
    const int strip = (team_ * Shape::kTeamRows + half * kWideHalfRows + row_) / kUnitRows;
    const std::byte* const unit = weight_at(stage) + strip * kWideStripBytes + group * p_.unit_bytes;
    const std::byte* const scales = unit + kUnitCodeBytes;
    const int r = lane_ / 4;
    if (p_.part.weight_scale_dtype == DType::kF32) {
      const float2 pair = reinterpret_cast<const float2*>(scales)[r];
      a.low = pair.x, a.high = pair.y;
    } else {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(scales)[r];
      a.low = value_of_stored(pair & 0xFFFF, p_.part.weight_scale_dtype);
      a.high = value_of_stored(pair >> 16, p_.part.weight_scale_dtype);
    }
    a.low *= Codec::kUnit, a.high *= Codec::kUnit;
    // What lies there is nobody's, and its products are zero.
    if (group == 1 && !has_second) a.low = a.high = 0;
    uint32_t zeros = 0x0808;
    if (Codec::kHasState && p_.has_zeros)
      zeros = reinterpret_cast<const uint16_t*>(unit + p_.unit_bytes - kUnitRows)[r];
    const typename Codec::State state_low(zeros & 15, tables_), state_high(zeros >> 8 & 15, tables_);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const uint4 words = reinterpret_cast<const uint4*>(unit)[v * 32 + lane_];
#pragma unroll
      for (int i = 0; i < kSlices / 2; ++i) {
        const int slice = v * (kSlices / 2) + i;
        const bool is_first = i < kSlices / 4;
        Codec::decode(is_first ? words.x : words.z, slice, state_low, a.at[slice][0], a.at[slice][2]);
        Codec::decode(is_first ? words.y : words.w, slice, state_high, a.at[slice][1], a.at[slice][3]);
      }
    }
  }

  __device__ __forceinline__ void multiply_unit(const Stage& stage, bool has_second, float (&total)[kHalves][kSums]) {
    // Operands differ in the address alone, the lowest 14 bits.
    const uint64_t first_tokens = wgmma_operand(shared_address(tokens_at(0)));
    const uint32_t tokens = static_cast<uint32_t>(first_tokens) + stage.at * (Shape::kStageBytes / 16);
    full(stage.at).wait_or_fault(stage.parity);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int group = pass / kHalves, half = pass % kHalves;
      Fragments a;
      load(stage.at, pass, has_second, a);
      const uint32_t x = tokens + group * (Shape::kTokenChunks / 2 * Shape::kTokenBytes / 16);
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
      if (pass == kPasses - 1 && lane_ == 0) empty(stage.at).arrive();
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[half][i] = fmaf(i / 2 % 2 == 0 ? a.low : a.high, sum[i], total[half][i]);
    }
  }

  __device__ float* partial_of(int block) const {
    return p_.partial + (int64_t{block} * kWideTeams + team_) * (kHalves * kSums * kWideTeamThreads) +
           threadIdx.x % kWideTeamThreads;
  }
  __device__ uint32_t* ready_of(int block) const { return p_.ready + block * kWideTeams + team_; }
  // For the block that ends the tile.
  __device__ void leave(const float (&total)[kHalves][kSums]) {
    const int block = block_here();
    float* const to = partial_of(block);
#pragma unroll
    for (int i = 0; i < kHalves * kSums; ++i) to[i * kWideTeamThreads] = total[i / kSums][i % kSums];
    __threadfence();
    team_barrier();
    if (leads()) store_release(ready_of(block), 1);
  }
  // Adds what the blocks before this one have of the tile, the lowest first.
  __device__ void collect(const WideSegment& segment, float (&total)[kHalves][kSums]) {
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
      for (int i = 0; i < kHalves * kSums; ++i) total[i / kSums][i % kSums] += __ldcg(from + i * kWideTeamThreads);
    }
  }

  // A tile's rows of out, by way of shared memory: there a token's rows lie side by side. 64 rows of 32 tokens at once.
  __device__ void write(int tile, const float (&total)[kHalves][kSums]) {
    const int first_row = first_row_of(tile), first_token = tile % p_.token_tiles * kTokens;
    float* const out = out_at();
    const int thread = threadIdx.x % kWideTeamThreads;
    // A token's scale lies behind its rows.
    const float x_scale = p_.x_scale == nullptr || thread >= kTokens || first_token + thread >= p_.m
                              ? 1
                              : p_.x_scale[first_token + thread];
    constexpr int kPieces = kTokens / kWideOutTokens, kVectors = kWideHalfRows / kWideVector;
#pragma unroll 1
    for (int i = 0; i < kHalves * kPieces; ++i) {
      const int token = first_token + i % kPieces * kWideOutTokens, row = first_row + i / kPieces * kWideHalfRows;
      const int tokens = min(kWideOutTokens, p_.m - token);
      place(i, total, out);
      if (thread / kWideOutTokens == i % kPieces)
        out[thread % kWideOutTokens * kWideOutStride + kWideHalfRows] = x_scale;
      team_barrier();
#pragma unroll 1
      for (int e = thread; e < tokens * kVectors; e += kWideTeamThreads) {
        const int at = e % kVectors * kWideVector;
        if (row + at < p_.part.n) write_vector(token + e / kVectors, row + at, out + e / kVectors * kWideOutStride, at);
      }
      team_barrier();  // before it is written again
    }
  }
  __device__ __forceinline__ void place(int piece, const float (&total)[kHalves][kSums], float* out) const {
    constexpr int kSumsOfPiece = kWideOutTokens / 2, kPieces = kSums / kSumsOfPiece;
    out += lane_ % 4 * 2 * kWideOutStride + row_;
#pragma unroll
    for (int one = 0; one < kHalves * kPieces; ++one)
      if (one == piece)
#pragma unroll
        for (int i = 0; i < kSumsOfPiece; ++i)
          out[(i / 4 * 8 + i % 2) * kWideOutStride + i / 2 % 2 * 8] =
              total[one / kPieces][one % kPieces * kSumsOfPiece + i];
  }

  __device__ __forceinline__ void write_vector(int token, int row, const float* from, int at) const {
    const NarrowPart& part = p_.part;
    float y[kWideVector];
    const float x_scale = from[kWideHalfRows];
#pragma unroll
    for (int i = 0; i < kWideVector; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + at + i);
      y[i] = four.x * x_scale, y[i + 1] = four.y * x_scale, y[i + 2] = four.z * x_scale, y[i + 3] = four.w * x_scale;
    }
    if (part.bias != nullptr)
#pragma unroll
      for (int i = 0; i < kWideVector; ++i)
        if (row + i < part.n) y[i] += number_at(part.bias, part.bias_dtype, row + i);
    if (part.out_dtype == DType::kF32) {
      finish<float>(token, row, y);
    } else {
      finish<__nv_bfloat16>(token, row, y);
    }
  }

  template <class T>
  __device__ __forceinline__ void finish(int token, int row, float (&y)[kWideVector]) const {
    const NarrowPart& part = p_.part;
    T* const to = static_cast<T*>(part.out) + token * part.out_stride + row;
    const T* const residual =
        part.residual == nullptr ? nullptr : static_cast<const T*>(part.residual) + token * part.residual_stride + row;
    if (p_.in_vectors && row + kWideVector <= part.n) {
      using Numbers = Pack<T, kWideVector>;
      if (residual != nullptr) {
        const Numbers added = *reinterpret_cast<const Numbers*>(residual);
#pragma unroll
        for (int i = 0; i < kWideVector; ++i) y[i] += widen(added.at[i]);
      }
      Numbers rounded;
#pragma unroll
      for (int i = 0; i < kWideVector; ++i) rounded.at[i] = narrow<T>(y[i]);
      *reinterpret_cast<Numbers*>(to) = rounded;
      return;
    }
#pragma unroll
    for (int i = 0; i < kWideVector; ++i)
      if (row + i < part.n) to[i] = narrow<T>(residual == nullptr ? y[i] : y[i] + widen(residual[i]));
  }

  const WideParams& p_;
  const uint32_t shared_, barriers_;  // addresses in shared memory; of full, then of empty
  const uint4* const tables_;
  const int team_, lane_;
  const int row_;  // of 64: the lane's first
};

template <class Codec, int kTokens, int kHalves>
__global__ void __launch_bounds__(WideShape<Codec, kTokens, kHalves>::kThreads, 1)
    linear_nibble_wide_kernel(const __grid_constant__ WideParams p, const __grid_constant__ WideMaps maps) {
  extern __shared__ std::byte raw[];
  using Shape = WideShape<Codec, kTokens, kHalves>;
  constexpr int kStages = Shape::kStages;
  // Of each stage full: the copying thread, once, and the bytes; the multipliers wait. Then of each stage empty: each of
  // their warps; that thread waits.
  __shared__ MBarrier barriers[2 * kStages];
  __shared__ uint4 tables[16];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) barriers[i].init(1), barriers[kStages + i].init(kWideMultipliers / 32);
    fence_barrier_init();
  }
  fill_zero_tables(tables);
  __syncthreads();
  pdl_launch_next();
  WideBlock<Codec, kTokens, kHalves> block(p, shared, tables, barriers);
  if (threadIdx.x < kWideMultipliers) {
    if constexpr (Shape::kMovesRegisters) take_registers<kWideRegisters>();
    block.multiply();
  } else {
    if constexpr (Shape::kMovesRegisters) give_registers<kWideCopyRegisters>();
    if (threadIdx.x == kWideMultipliers) block.copy(maps);
  }
}

}  // namespace hearth::sm90
