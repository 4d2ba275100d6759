// SPDX-License-Identifier: Apache-2.0
// The kernel of linear_nibble_wide_sm90.h. A warp copies, two groups of 128 columns of W and of the tokens a stage; two
// warpgroups multiply, each 64 rows of W by all tokens of the tile, W from registers: shared memory gives the packed
// codes, a decoder (linear_nibble_fragments_sm90.cuh) the fragments. A group's sums are added to a tile's in f32, times
// its scale. All multiprocessors get the same number of units (tile, two groups), as in linear_stream_sm90.cu; the
// warpgroups exchange sums and end tiles each for itself.
#pragma once

#include <algorithm>

#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/linear/linear_nibble_fragments_sm90.cuh"
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
constexpr int kWideChunkBytes = 128;  // a row of a swizzled tile in shared memory; of W two groups
constexpr int kWideOutTokens = 32;    // that go through shared memory at once on their way out
constexpr int kWideOutStride = kWideHalfRows + 4;
constexpr int kWideOutBytes = kWideTeams * kWideOutTokens * kWideOutStride * 4;
constexpr int kWideVector = 8;  // outputs of a thread at once

// How blocks share out the units of all tiles, as StreamPlan: in 32 bits, for divisions in 64 are calls.
struct WidePlan {
  int chunks, blocks;
  int each, more;  // units of a block, and blocks that have one more

  WidePlan(int tiles, int chunks_of_tile, int most_blocks)
      : chunks(chunks_of_tile),
        blocks(std::min(tiles * chunks, most_blocks)),
        each(tiles * chunks / blocks),
        more(tiles * chunks % blocks) {}
  // The first unit of a block, and behind the last one of the block before.
  __device__ __forceinline__ int begin(int block) const { return block * each + min(block, more); }
};

// Chunks [first, last) of a tile, the highest of units [begin, end). The block that has a tile's last chunk ends the
// tile: it adds up what blocks of lower numbers have of it.
struct WideSegment {
  int tile, first, last;

  __device__ __forceinline__ WideSegment(int begin, int end, int chunks)
      : tile((end - 1) / chunks), first(max(begin - tile * chunks, 0)), last(end - tile * chunks) {}
};

struct WideMaps {
  CUtensorMap x, weight;
};

struct WideParams {
  NarrowPart part;  // its weight_scale, zeros and their steps are those of the groups
  WidePlan plan;
  int m, token_tiles;  // tiles that follow each other have the same rows of W
  int groups, group_pieces;
  const float* x_scale;
  bool in_vectors;  // out and residual may be moved 16 bytes at once
  float* partial;   // [blocks][kWideTeams][sums of a thread][kWideTeamThreads]
  uint32_t* ready;  // [blocks][kWideTeams]: its partial sums are there
};

// kHalves: times 64 rows of W of a warpgroup in a tile. Two of them halve what is read of x.
// Shared memory: stages (W, then the tokens' chunks one behind the other), then the warpgroups' outputs.
template <class Codec, int kTokens, int kHalves>
struct WideShape {
  // Many tokens' sums take all registers: the copying warp is then a warpgroup, which gives its own away. With fewer,
  // small kernels find room beside the block.
  static constexpr bool kMovesRegisters = kTokens * kHalves > 64;
  static constexpr int kThreads = kWideMultipliers + (kMovesRegisters ? 128 : 32);
  static constexpr int kTeamRows = kHalves * kWideHalfRows, kRows = kWideTeams * kTeamRows;
  static constexpr int kWeightBytes = kRows * kWideChunkBytes;
  static constexpr int kTokenChunks = Codec::kBf16 ? 4 : 2;  // of a stage
  static constexpr int kTokenBytes = kTokens * kWideChunkBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokenChunks * kTokenBytes;
  // All that a block may have, as linear_stream_sm90.cu.
  static constexpr int kStages = (225 * 1024 - kSharedLeft - kWideOutBytes) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kWideOutBytes + 1024;
  static_assert(kStages >= 2 && kStageBytes % 1024 == 0);
};

// What a lane has of a unit's scales and zero points: row r or r + 8 of its fragments (bit 1 of the lane), group 0 or 1
// (bit 0).
template <int kHalves>
struct WideScales {
  uint32_t bits[kHalves], zero[kHalves];
};

template <class Codec, int kTokens, int kHalves>
class WideBlock {
 public:
  using Shape = WideShape<Codec, kTokens, kHalves>;
  using Scales = WideScales<kHalves>;
  static constexpr int kStages = Shape::kStages, kSums = kTokens / 2, kSlices = Codec::kBf16 ? 8 : 4;

  __device__ WideBlock(const WideParams& p, std::byte* shared, const uint4* tables, MBarrier* full, MBarrier* empty)
      : p_(p),
        shared_(shared),
        tables_(tables),
        full_(full),
        empty_(empty),
        team_(static_cast<int>(threadIdx.x) / kWideTeamThreads),
        lane_(static_cast<int>(threadIdx.x) % 32),
        row_(static_cast<int>(threadIdx.x) % kWideTeamThreads / 32 * 16 + row_of_lane(lane_)) {}

  // One thread.
  __device__ void copy(const WideMaps& maps) {
    const int held = min(kStages, end_unit() - first_unit());
    for_each_unit([&](int unit, int row, int, int chunk) {
      if (unit < held) copy_weight(maps, unit % kStages, row, chunk);
    });
    pdl_wait();
    for_each_unit([&](int unit, int row, int token, int chunk) {
      const int stage = unit % kStages;
      if (unit >= held) {
        empty_[stage].wait_or_fault(unit / kStages % 2 ^ 1);
        copy_weight(maps, stage, row, chunk);
      }
      copy_tensor(tokens_at(stage), maps.x, 0, token, chunk * Shape::kTokenChunks, full_[stage]);
    });
  }

  // The multipliers.
  __device__ void multiply() {
    Scales ahead = ask_scales(end_unit());
    pdl_wait();
    int unit = 0;
    for (int end = end_unit(); end > first_unit();) {
      const WideSegment segment(first_unit(), end, p_.plan.chunks);
      const int first_row = first_row_of(segment.tile);
      end -= segment.last - segment.first;
      float total[kHalves][kSums] = {};
      for (int chunk = segment.first; chunk < segment.last; ++chunk, ++unit) {
        const Scales scales = ahead;
        if (chunk + 1 < segment.last) {
          ahead = ask_scales(first_row, chunk + 1);
        } else if (end > first_unit()) {
          ahead = ask_scales(end);
        }
        multiply_unit(unit, scales, total);
      }
      if (segment.last < p_.plan.chunks) {
        leave(total);
      } else {
        collect(segment, total);
        write(segment.tile, total);
      }
    }
  }

 private:
  // Of 8: so that lanes of two rows that read at the same time find them in different halves of the banks.
  __device__ __forceinline__ static int row_of_lane(int lane) { return lane / 8 | lane / 4 % 2 << 2; }

  __device__ __forceinline__ int first_unit() const { return p_.plan.begin(block_here()); }
  __device__ __forceinline__ int end_unit() const { return p_.plan.begin(block_here() + 1); }

  template <class F>
  __device__ __forceinline__ void for_each_unit(const F& f) const {
    int unit = 0;
#pragma unroll 1
    for (int end = end_unit(); end > first_unit();) {
      const WideSegment segment(first_unit(), end, p_.plan.chunks);
      const int row_tile = segment.tile / p_.token_tiles, token_tile = segment.tile - row_tile * p_.token_tiles;
#pragma unroll 1
      for (int chunk = segment.first; chunk < segment.last; ++chunk)
        f(unit++, row_tile * Shape::kRows, token_tile * kTokens, chunk);
      end -= segment.last - segment.first;
    }
  }
  __device__ __forceinline__ std::byte* weight_at(int stage) const { return shared_ + stage * Shape::kStageBytes; }
  __device__ __forceinline__ std::byte* tokens_at(int stage) const { return weight_at(stage) + Shape::kWeightBytes; }
  __device__ __forceinline__ float* out_at() const {
    return reinterpret_cast<float*>(shared_ + kStages * Shape::kStageBytes) + team_ * kWideOutTokens * kWideOutStride;
  }
  __device__ __forceinline__ void team_barrier() const { named_barrier(1 + team_, kWideTeamThreads); }
  __device__ __forceinline__ bool leads() const { return threadIdx.x % kWideTeamThreads == 0; }

  __device__ __forceinline__ void copy_weight(const WideMaps& maps, int stage, int row, int chunk) {
    full_[stage].arrive_and_expect(Shape::kStageBytes);
    if (p_.token_tiles == 1) {
      copy_tensor_once(weight_at(stage), maps.weight, chunk * kWideChunkBytes, row, full_[stage]);
    } else {
      copy_tensor(weight_at(stage), maps.weight, chunk * kWideChunkBytes, row, full_[stage]);
    }
  }

  // A warpgroup's first row of W.
  __device__ __forceinline__ int first_row_of(int tile) const {
    return tile / p_.token_tiles * Shape::kRows + team_ * Shape::kTeamRows;
  }
  // Rows and groups that do not exist have those of the last one: their products are zero or go nowhere.
  __device__ __forceinline__ Scales ask_scales(int first_row, int chunk) const {
    const NarrowPart& part = p_.part;
    int group = 2 * chunk + lane_ % 2;
    if (p_.group_pieces > 1) group /= p_.group_pieces;
    group = min(group, p_.groups - 1);
    Scales scales;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const int64_t row = min(first_row + half * kWideHalfRows + row_ + lane_ / 2 % 2 * 8, part.n - 1);
      const int64_t at = row * part.weight_scale_step + group;
      if (part.weight_scale_dtype == DType::kF32) {
        scales.bits[half] = __ldg(static_cast<const uint32_t*>(part.weight_scale) + at);
      } else {
        scales.bits[half] = __ldg(static_cast<const uint16_t*>(part.weight_scale) + at);
      }
      scales.zero[half] = part.zeros == nullptr ? 8 : __ldg(part.zeros + row * part.zero_step + group);
    }
    return scales;
  }
  // Of the first unit of the segment that ends at `end`.
  __device__ __forceinline__ Scales ask_scales(int end) const {
    const WideSegment segment(first_unit(), end, p_.plan.chunks);
    return ask_scales(first_row_of(segment.tile), segment.first);
  }
  __device__ __forceinline__ float widen_scale(uint32_t bits) const {
    const float narrow = p_.part.weight_scale_dtype == DType::kF16
                             ? __half2float(__ushort_as_half(static_cast<unsigned short>(bits)))
                             : __uint_as_float(bits << 16);
    return (p_.part.weight_scale_dtype == DType::kF32 ? __uint_as_float(bits) : narrow) * Codec::kUnit;
  }

  __device__ __forceinline__ static void load_words(const std::byte* at, uint32_t (&words)[4]) {
    const uint4 vector = *reinterpret_cast<const uint4*>(at);
    words[0] = vector.x, words[1] = vector.y, words[2] = vector.z, words[3] = vector.w;
  }

  __device__ __forceinline__ void multiply_unit(int unit, const Scales& scales, float (&total)[kHalves][kSums]) {
    const int stage = unit % kStages;
    const std::byte* const weight = weight_at(stage) + (team_ * Shape::kTeamRows + row_) * kWideChunkBytes;
    const uint32_t tokens = shared_address(tokens_at(stage));
    float scale[kHalves];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) scale[half] = widen_scale(scales.bits[half]);
    full_[stage].wait_or_fault(unit / kStages % 2);
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const int from_low = (lane_ & ~3) | group, from_high = from_low | 2;
      const uint32_t group_tokens = tokens + group * (Shape::kTokenChunks / 2 * Shape::kTokenBytes);
      const int at = ((group * 4 + lane_ % 4) ^ row_ % 8) * 16;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const float scale_low = __shfl_sync(~0u, scale[half], from_low);
        const float scale_high = __shfl_sync(~0u, scale[half], from_high);
        const typename Codec::State state_low(__shfl_sync(~0u, scales.zero[half], from_low), tables_);
        const typename Codec::State state_high(__shfl_sync(~0u, scales.zero[half], from_high), tables_);
        uint32_t low[4], high[4], a[kSlices][4];
        load_words(weight + half * kWideHalfRows * kWideChunkBytes + at, low);
        load_words(weight + (half * kWideHalfRows + 8) * kWideChunkBytes + at, high);
        float sum[kSums];  // the first product writes it
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
          Codec::decode(low, slice, state_low, a[slice][0], a[slice][2]);
          Codec::decode(high, slice, state_high, a[slice][1], a[slice][3]);
          const uint64_t x = wgmma_operand(group_tokens + slice / 4 * Shape::kTokenBytes + slice % 4 * 32);
          wgmma_begin();
          if constexpr (Codec::kBf16) {
            wgmma_bf16<kTokens>(sum, a[slice], x, slice > 0);
          } else {
            wgmma_e4m3<kTokens>(sum, a[slice], x, slice > 0);
          }
        }
        wgmma_commit();
        wgmma_wait<0>();
        pin_registers(sum);
        pin_registers(a);
        if (group == 1 && half == kHalves - 1 && lane_ == 0) empty_[stage].arrive();
#pragma unroll
        for (int i = 0; i < kSums; ++i)
          total[half][i] = fmaf(i / 2 % 2 == 0 ? scale_low : scale_high, sum[i], total[half][i]);
      }
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
    if (first_unit() <= tile_begin) return;
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
    constexpr int kPieces = kTokens / kWideOutTokens, kVectors = kWideHalfRows / kWideVector;
#pragma unroll 1
    for (int i = 0; i < kHalves * kPieces; ++i) {
      const int token = first_token + i % kPieces * kWideOutTokens, row = first_row + i / kPieces * kWideHalfRows;
      const int tokens = min(kWideOutTokens, p_.m - token);
      place(i, total, out);
      team_barrier();
#pragma unroll 1
      for (int e = threadIdx.x % kWideTeamThreads; e < tokens * kVectors; e += kWideTeamThreads) {
        const int at = e % kVectors * kWideVector;
        if (row + at < p_.part.n)
          write_vector(token + e / kVectors, row + at, out + e / kVectors * kWideOutStride + at);
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

  __device__ __forceinline__ void write_vector(int token, int row, const float* from) const {
    const NarrowPart& part = p_.part;
    float y[kWideVector];
    const float x_scale = p_.x_scale != nullptr ? p_.x_scale[token] : 1.0f;
#pragma unroll
    for (int i = 0; i < kWideVector; ++i) y[i] = from[i] * x_scale;
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
  std::byte* const shared_;
  const uint4* const tables_;
  MBarrier *const full_, *const empty_;
  const int team_, lane_;
  const int row_;  // of 64: the lane's first
};

template <class Codec, int kTokens, int kHalves>
__global__ void __launch_bounds__(WideShape<Codec, kTokens, kHalves>::kThreads, 1)
    linear_nibble_wide_kernel(const __grid_constant__ WideParams p, const __grid_constant__ WideMaps maps) {
  extern __shared__ std::byte raw[];
  using Shape = WideShape<Codec, kTokens, kHalves>;
  constexpr int kStages = Shape::kStages;
  // full: the copying thread, once, and the bytes; the multipliers wait. empty: each of their warps; that thread waits.
  __shared__ MBarrier full[kStages], empty[kStages];
  __shared__ uint4 tables[16];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(kWideMultipliers / 32);
    fence_barrier_init();
  }
  fill_zero_tables(tables);
  __syncthreads();
  pdl_launch_next();
  WideBlock<Codec, kTokens, kHalves> block(p, shared, tables, full, empty);
  if (threadIdx.x < kWideMultipliers) {
    if constexpr (Shape::kMovesRegisters) take_registers<kWideRegisters>();
    block.multiply();
  } else {
    if constexpr (Shape::kMovesRegisters) give_registers<kWideCopyRegisters>();
    if (threadIdx.x == kWideMultipliers) block.copy(maps);
  }
}

}  // namespace hearth::sm90
