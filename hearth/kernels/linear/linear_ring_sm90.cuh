// SPDX-License-Identifier: Apache-2.0
// The linear of few tokens, whatever W's code. A block a multiprocessor takes tiles of 16 rows of W in turns:
//   one thread copies, 8 pieces of K of the 16 rows and of the tokens a stage; W's first stages, all that shared memory
//     holds, are asked for before the kernels in front have ended;
//   teams of eight warps multiply, a team a stage in turns, each warp a piece of it, W as the M side of the MMA and
//     tokens the N side;
//   four warps bring the scales of groups of K, a tile ahead;
//   two warps end tiles: the multipliers' sums meet in shared memory and are added in the order of the warps.
// So nobody who multiplies waits for memory that is not W or x.
//
// What multiplies is a Codec:
//   kRowBytes     of a row of W in a piece: 128, swizzled, or 64 in one piece of the copy
//   kTokenChunks  128-byte chunks of a token's row in a piece, swizzled
//   kHasGroups    W has scales for groups of K; a piece lies in one group
//   kUnit         what 1 in a piece's sum stands for, where it has groups
//   kTeams        the more, the longer a warp may take for a piece
//   Lane          where a lane's part of a piece lies; made from its number once
//   multiply<kTiles>(weight, tokens, lane, zeros, sum): adds the piece's products of W's rows r and r + 8 to sum, as
//                 mma.cuh's D says; zeros: of these rows' group
#pragma once

#include <algorithm>

#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {

constexpr int kRingWarps = 8;                                // that share a stage
constexpr int kRingRows = kNarrowRows, kRingTileTokens = 8;  // of an MMA's output
constexpr int kRingMostSlots = 24;
constexpr int kRingBuffers = 2;  // of sums, and of scales: one is read while the other is written
constexpr int kRingScaleThreads = 128, kRingEndThreads = 64;
constexpr int kChunkBytes = 128;
// Of a block: all that a multiprocessor has, less room for the barriers and small kernels.
constexpr int kRingSharedBytes = 227 * 1024 - kSharedLeft;

struct RingMaps {
  CUtensorMap x, weight[kNarrowMostParts];
};

struct RingParams {
  NarrowProduct product;
  int first_tile[kNarrowMostParts];
  int tiles;
  int stages;        // of a tile
  int slots;         // stages that shared memory holds
  int scale_stride;  // groups, and one more where they are even: rows on different banks
};

// Shared memory: slots (for each piece of a stage 16 rows of W, then the tokens), and twice the warps' sums, and a
// tile's scales and zeros.
template <class Codec, int kTiles>
struct RingShape {
  static constexpr int kTokens = kTiles * kRingTileTokens;
  static constexpr int kPieceWeightBytes = kRingRows * Codec::kRowBytes;
  static constexpr int kPieceTokenBytes = kTokens * kChunkBytes * Codec::kTokenChunks;
  static constexpr int kWeightBytes = kRingWarps * kPieceWeightBytes;
  static constexpr int kSlotBytes = kWeightBytes + kRingWarps * kPieceTokenBytes;
  static constexpr int kWarps = Codec::kTeams * kRingWarps;  // that multiply
  static constexpr int kSumStride = kRingRows + 1;
  static constexpr int kSums = kWarps * kTokens * kSumStride;
  static_assert(kSlotBytes % 1024 == 0);

  // Threads: multipliers, then the one that copies, those that end tiles, those that bring scales.
  static constexpr int kMultipliers = 32 * kWarps;
  static constexpr int kFirstEnding = kMultipliers + 32, kFirstScaling = kFirstEnding + kRingEndThreads;
  static constexpr int kThreads = kFirstScaling + (Codec::kHasGroups ? kRingScaleThreads : 0);

  static constexpr int other_bytes(int scale_stride) {
    return kRingBuffers * (kSums * 4 + (Codec::kHasGroups ? kRingRows * scale_stride * 5 : 0));
  }
  // As many as fit; whole teams, so that a slot is always the same team's.
  static constexpr int slots(int scale_stride) {
    const int fit = (kRingSharedBytes - 1024 - other_bytes(scale_stride)) / kSlotBytes;
    return (fit < kRingMostSlots ? fit : kRingMostSlots) / Codec::kTeams * Codec::kTeams;
  }
  static constexpr int shared_bytes(int slots, int scale_stride) {
    return slots * kSlotBytes + other_bytes(scale_stride) + 1024;
  }
};

struct RingBarriers {
  MBarrier full[kRingMostSlots], empty[kRingMostSlots];
  MBarrier scales_full[kRingBuffers], scales_empty[kRingBuffers], sums_full[kRingBuffers], sums_empty[kRingBuffers];
};

template <class Codec, int kTiles>
class RingBlock {
 public:
  using Shape = RingShape<Codec, kTiles>;

  __device__ RingBlock(const RingParams& p, std::byte* shared, RingBarriers& barriers)
      : p_(p), shared_(shared), barriers_(barriers) {}

  // One thread.
  __device__ void copy(const RingMaps& maps) {
    Walk weights = begin();
    for (int slot = 0; slot < p_.slots && !done(weights); ++slot, next(weights)) copy_weight(maps, slot, weights);
    prefetch_tensor_map(maps.x);
    pdl_wait();
    int slot = 0, parity = 1;
    bool again = false;  // the ring has been filled once
    for (Walk walk = begin(); !done(walk); next(walk)) {
      if (again) {
        barriers_.empty[slot].wait(parity);
        copy_weight(maps, slot, walk);
      }
      copy_tensor(tokens_at(slot), maps.x, 0, 0, walk.stage * kRingWarps * Codec::kTokenChunks, barriers_.full[slot]);
      if (++slot == p_.slots) slot = 0, parity ^= 1, again = true;
    }
  }

  // kRingScaleThreads threads. Scales are weights: nothing to wait for in front.
  __device__ void copy_scales(int thread) {
    Buffer buffer;
    for (int tile = static_cast<int>(blockIdx.x); tile < p_.tiles; tile += static_cast<int>(gridDim.x), buffer.next()) {
      const int part_index = part_of(tile);
      barriers_.scales_empty[buffer.index].wait(buffer.parity ^ 1);
      const NarrowPart& part = p_.product.part[part_index];
      const int first_row = (tile - p_.first_tile[part_index]) * kRingRows;
      switch (part.weight_scale_dtype) {
        case DType::kF32: copy_scales_of<uint32_t>(part, first_row, buffer.index, thread); break;
        case DType::kE4m3: copy_scales_of<uint8_t>(part, first_row, buffer.index, thread); break;
        default: copy_scales_of<uint16_t>(part, first_row, buffer.index, thread);
      }
      barriers_.scales_full[buffer.index].arrive();
    }
  }

  // The multipliers.
  __device__ void multiply() {
    pdl_wait();
    const int team = threadIdx.x / (32 * kRingWarps), lane = threadIdx.x % 32;
    const Piece piece(threadIdx.x / 32 % kRingWarps, lane, p_.scale_stride);
    int slot = team, parity = 0, stage = team;
    Buffer buffer;
    for (int tile = static_cast<int>(blockIdx.x); tile < p_.tiles; tile += static_cast<int>(gridDim.x), buffer.next()) {
      if constexpr (Codec::kHasGroups) barriers_.scales_full[buffer.index].wait(buffer.parity);
      float total[kTiles][4] = {};
      for (; stage < p_.stages; stage += Codec::kTeams) {
        multiply_stage(piece, stage, slot, parity, buffer.index, total);
        slot += Codec::kTeams;
        if (slot >= p_.slots) slot -= p_.slots, parity ^= 1;
      }
      stage -= p_.stages;  // the team's first one of the next tile
      barriers_.sums_empty[buffer.index].wait(buffer.parity ^ 1);
      leave(total, sums_at(buffer.index));
      barriers_.sums_full[buffer.index].arrive();
      // Scales are in `total`, which has been stored.
      if constexpr (Codec::kHasGroups) barriers_.scales_empty[buffer.index].arrive();
    }
  }

  // kRingEndThreads threads: a row of 16 elements for a token each, in turns.
  __device__ void end_tiles(int thread) {
    constexpr int kElements = (kTiles * kRingTileTokens * kRingRows + kRingEndThreads - 1) / kRingEndThreads;
    constexpr int kTokenStep = kRingEndThreads / kRingRows;
    const int m = p_.product.m, first_token = thread / kRingRows, row_in_tile = thread % kRingRows;
    pdl_wait();
    float x_scale[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int token = first_token + i * kTokenStep;
      x_scale[i] = p_.product.x_scale != nullptr && token < m ? __ldcg(p_.product.x_scale + token) : 1.0f;
    }
    Buffer buffer;
    for (int tile = static_cast<int>(blockIdx.x); tile < p_.tiles; tile += static_cast<int>(gridDim.x), buffer.next()) {
      const int part_index = part_of(tile);
      const NarrowPart& part = p_.product.part[part_index];
      const int row = (tile - p_.first_tile[part_index]) * kRingRows + row_in_tile;
      const auto writes = [&](int i) { return first_token + i * kTokenStep < m && row < part.n; };
      // Asked for now, needed after the tile's last stage.
      uint32_t row_scale = 0, bias = 0, residual[kElements] = {};
      if (writes(0)) {
        if (!Codec::kHasGroups && part.weight_scale != nullptr)
          row_scale = stored_at(part.weight_scale, part.weight_scale_dtype, row * part.weight_scale_step);
        if (part.bias != nullptr) bias = stored_at(part.bias, part.bias_dtype, row);
      }
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (part.residual != nullptr && writes(i))
          residual[i] =
              stored_at(part.residual, part.out_dtype, (first_token + i * kTokenStep) * part.residual_stride + row);
      barriers_.sums_full[buffer.index].wait(buffer.parity);
      const float* const sums = sums_at(buffer.index);
      float y[kElements] = {};
#pragma unroll
      for (int i = 0; i < kElements; ++i)
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w)
          y[i] += sums[(w * Shape::kTokens + first_token + i * kTokenStep) * Shape::kSumStride + row_in_tile];
      uint32_t outcome = 0;
#pragma unroll
      for (int i = 0; i < kElements; ++i) outcome |= __float_as_uint(y[i]);
      barriers_.sums_empty[buffer.index].arrive_behind_loads(outcome);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (!writes(i)) continue;
        const int token = first_token + i * kTokenStep;
        if (!Codec::kHasGroups && part.weight_scale != nullptr)
          y[i] *= value_of_stored(row_scale, part.weight_scale_dtype);
        if (p_.product.x_scale != nullptr) y[i] *= x_scale[i];
        if (part.bias != nullptr) y[i] += value_of_stored(bias, part.bias_dtype);
        if (part.residual != nullptr) y[i] += value_of_stored(residual[i], part.out_dtype);
        if (part.out_dtype == DType::kF32) {
          static_cast<float*>(part.out)[token * part.out_stride + row] = y[i];
        } else {
          static_cast<__nv_bfloat16*>(part.out)[token * part.out_stride + row] = __float2bfloat16_rn(y[i]);
        }
      }
    }
  }

 private:
  // The stages of the block's tiles, one after the other.
  struct Walk {
    int tile, stage;
  };
  __device__ __forceinline__ static Walk begin() { return {static_cast<int>(blockIdx.x), 0}; }
  __device__ __forceinline__ bool done(const Walk& walk) const { return walk.tile >= p_.tiles; }
  __device__ __forceinline__ void next(Walk& walk) const {
    if (++walk.stage == p_.stages) walk.stage = 0, walk.tile += static_cast<int>(gridDim.x);
  }

  // A tile's turn among the buffers.
  struct Buffer {
    int index = 0, parity = 0;
    __device__ __forceinline__ void next() {
      if (++index == kRingBuffers) index = 0, parity ^= 1;
    }
  };

  __device__ __forceinline__ int part_of(int tile) const {
    int part = 0;
    while (part + 1 < p_.product.parts && tile >= p_.first_tile[part + 1]) ++part;
    return part;
  }
  __device__ __forceinline__ std::byte* weight_at(int slot) const { return shared_ + slot * Shape::kSlotBytes; }
  __device__ __forceinline__ std::byte* tokens_at(int slot) const { return weight_at(slot) + Shape::kWeightBytes; }
  __device__ __forceinline__ float* sums_at(int buffer) const {
    return reinterpret_cast<float*>(shared_ + p_.slots * Shape::kSlotBytes) + buffer * Shape::kSums;
  }
  __device__ __forceinline__ float* scales_at(int buffer) const {
    return sums_at(kRingBuffers) + buffer * (kRingRows * p_.scale_stride);
  }
  __device__ __forceinline__ uint8_t* zeros_at(int buffer) const {
    return reinterpret_cast<uint8_t*>(scales_at(kRingBuffers)) + buffer * (kRingRows * p_.scale_stride);
  }

  // Where a warp's piece of a stage lies, and the lane's part of that.
  struct Piece {
    const int warp, lane, weight, tokens;  // bytes in a slot
    const int scale;                       // of the lane's row r
    const typename Codec::Lane part;

    __device__ __forceinline__ Piece(int w, int l, int scale_stride)
        : warp(keep(w)),
          lane(keep(l)),
          weight(keep(w * Shape::kPieceWeightBytes)),
          tokens(keep(Shape::kWeightBytes + w * Shape::kPieceTokenBytes)),
          scale(keep(l / 4 * scale_stride)),
          part(l) {}
  };

  // A warp's piece of a stage.
  __device__ __forceinline__ void multiply_stage(const Piece& piece, int stage, int slot, int parity, int buffer,
                                                 float (&total)[kTiles][4]) const {
    float scale[2] = {1, 1};
    int zero[2] = {};
    if constexpr (Codec::kHasGroups) {
      const int group = min((stage * kRingWarps + piece.warp) >> p_.product.group_shift, p_.product.groups - 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = piece.scale + 8 * h * p_.scale_stride + group;
        scale[h] = scales_at(buffer)[at], zero[h] = zeros_at(buffer)[at];
      }
    }
    barriers_.full[slot].wait(parity);
    // Sums in f32 outside of the tensor cores after each piece: their own sums of E4M3 have few bits.
    float sum[kTiles][4] = {};
    const std::byte* const at = weight_at(slot);
    Codec::template multiply<kTiles>(at + piece.weight, at + piece.tokens, piece.part, zero, sum);
    uint32_t outcome = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) outcome |= __float_as_uint(sum[t][0]);
    __syncwarp();
    if (piece.lane == 0) barriers_.empty[slot].arrive_behind_loads(outcome);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        total[t][i] = Codec::kHasGroups ? fmaf(sum[t][i], scale[i / 2], total[t][i]) : total[t][i] + sum[t][i];
  }

  // For the threads that end the tile.
  __device__ __forceinline__ static void leave(const float (&total)[kTiles][4], float* sums) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = t * kRingTileTokens + lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
        sums[(warp * Shape::kTokens + token) * Shape::kSumStride + row] = total[t][i];
      }
  }

  // Many at once. Their type is known here, and no branch stands between the loads: they would wait for each other.
  template <class Stored, bool kZeros>
  __device__ __forceinline__ void copy_scales_of(const NarrowPart& part, int first_row, int buffer, int thread) const {
    constexpr int kAtOnce = 4;
    const int groups = p_.product.groups, all = kRingRows * groups;
    for (int begin = thread; begin < all; begin += kAtOnce * kRingScaleThreads) {
      Stored scale[kAtOnce];
      uint8_t zero[kAtOnce];
      int at[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int e = min(begin + i * kRingScaleThreads, all - 1), in_tile = e / groups, group = e - in_tile * groups;
        const int64_t row = min(first_row + in_tile, part.n - 1);
        at[i] = in_tile * p_.scale_stride + group;
        scale[i] = static_cast<const Stored*>(part.weight_scale)[row * part.weight_scale_step + group];
        zero[i] = kZeros ? part.zeros[row * part.zero_step + group] : 8;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i * kRingScaleThreads >= all) continue;
        scales_at(buffer)[at[i]] = Codec::kUnit * value_of_stored(scale[i], part.weight_scale_dtype);
        zeros_at(buffer)[at[i]] = zero[i];
      }
    }
  }
  template <class Stored>
  __device__ __forceinline__ void copy_scales_of(const NarrowPart& part, int first_row, int buffer, int thread) const {
    if (part.zeros == nullptr) {
      copy_scales_of<Stored, false>(part, first_row, buffer, thread);
    } else {
      copy_scales_of<Stored, true>(part, first_row, buffer, thread);
    }
  }

  __device__ __forceinline__ void copy_weight(const RingMaps& maps, int slot, const Walk& walk) {
    const int part = part_of(walk.tile);
    barriers_.full[slot].arrive_and_expect(Shape::kSlotBytes);
    copy_tensor_once(weight_at(slot), maps.weight[part], 0, (walk.tile - p_.first_tile[part]) * kRingRows,
                     walk.stage * kRingWarps, barriers_.full[slot]);
  }

  const RingParams& p_;
  std::byte* const shared_;
  RingBarriers& barriers_;
};

template <class Codec, int kTiles>
__global__ void __launch_bounds__(RingShape<Codec, kTiles>::kThreads, 1)
    linear_ring_kernel(const __grid_constant__ RingParams p, const __grid_constant__ RingMaps maps) {
  using Shape = RingShape<Codec, kTiles>;
  extern __shared__ std::byte raw[];
  __shared__ RingBarriers barriers;
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.slots; ++i) barriers.full[i].init(1), barriers.empty[i].init(kRingWarps);
    for (int i = 0; i < kRingBuffers; ++i) {
      barriers.scales_full[i].init(kRingScaleThreads), barriers.scales_empty[i].init(Shape::kMultipliers);
      barriers.sums_full[i].init(Shape::kMultipliers), barriers.sums_empty[i].init(kRingEndThreads);
    }
    fence_barrier_init();
  }
  __syncthreads();
  pdl_launch_next();
  RingBlock<Codec, kTiles> block(p, shared, barriers);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < Shape::kMultipliers) {
    block.multiply();
  } else if (thread == Shape::kMultipliers) {
    block.copy(maps);
  } else if (thread >= Shape::kFirstScaling) {
    block.copy_scales(thread - Shape::kFirstScaling);
  } else if (thread >= Shape::kFirstEnding) {
    block.end_tiles(thread - Shape::kFirstEnding);
  }
}

// Rows of bytes, a stage's pieces of `box_rows` rows at once: [chunk][row][chunk_bytes].
inline Result<CUtensorMap> map_pieces(const void* base, int64_t rows, int row_bytes, int64_t stride, int box_rows,
                                      int chunk_bytes, int chunks) {
  return encode_tensor_map(
      base, 1,
      {.rank = 3,
       .size = {static_cast<uint64_t>(chunk_bytes), static_cast<uint64_t>(rows),
                static_cast<uint64_t>(row_bytes / chunk_bytes)},
       .stride_bytes = {1, static_cast<uint64_t>(rows == 1 ? row_bytes : stride), static_cast<uint64_t>(chunk_bytes)},
       .box = {static_cast<uint32_t>(chunk_bytes), static_cast<uint32_t>(box_rows), static_cast<uint32_t>(chunks)},
       .swizzle = chunk_bytes == kChunkBytes});
}

// REQUIRES: rows of whole pieces, in 16-byte vectors; ring_fits().
template <class Codec, int kTiles>
Status start_ring_tiles(const NarrowProduct& product, const CudaDeviceInfo& device, void* stream) {
  using Shape = RingShape<Codec, kTiles>;
  const int pieces = product.row_bytes / Codec::kRowBytes;
  RingParams params{.product = product, .first_tile = {}, .tiles = 0, .stages = 0, .slots = 0, .scale_stride = 0};
  params.stages = (pieces + kRingWarps - 1) / kRingWarps;
  if (Codec::kHasGroups) params.scale_stride = product.groups | 1;
  params.slots = Shape::slots(params.scale_stride);
  RingMaps maps;
  HEARTH_TRY_ASSIGN(maps.x,
                    map_pieces(product.x, product.m, pieces * kChunkBytes * Codec::kTokenChunks, product.x_stride,
                               Shape::kTokens, kChunkBytes, kRingWarps * Codec::kTokenChunks));
  for (int i = 0; i < product.parts; ++i) {
    const NarrowPart& part = product.part[i];
    params.first_tile[i] = params.tiles;
    params.tiles += (part.n + kRingRows - 1) / kRingRows;
    HEARTH_TRY_ASSIGN(maps.weight[i], map_pieces(part.weight, part.n, product.row_bytes, part.weight_stride, kRingRows,
                                                 Codec::kRowBytes, kRingWarps));
  }
  const auto kernel = linear_ring_kernel<Codec, kTiles>;
  Launch how(dim3(static_cast<unsigned>(std::min(params.tiles, device.multiprocessors))), dim3(Shape::kThreads),
             stream);
  how.pdl = true;
  how.shared_bytes = Shape::shared_bytes(params.slots, params.scale_stride);
  if (kRingSharedBytes > device.block_shared_bytes)
    return unsupported("linear: a block of this GPU has {} bytes of shared memory, wanted {}",
                       device.block_shared_bytes, kRingSharedBytes);
  HEARTH_TRY(enter_cuda_device());
  // The same for every product: another thread may be about to start this kernel.
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingSharedBytes));
  return launch(how, kernel, params, maps);
}

// Whether shared memory holds the scales of so many groups beside a slot for each team.
template <class Codec>
constexpr bool ring_fits(int64_t groups) {
  return groups < 4096 && RingShape<Codec, 2>::slots(static_cast<int>(groups | 1)) >= Codec::kTeams;
}

template <class Codec>
Status start_ring(const NarrowProduct& product, void* stream) {
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  return product.m <= kRingTileTokens ? start_ring_tiles<Codec, 1>(product, *device, stream)
                                      : start_ring_tiles<Codec, 2>(product, *device, stream);
}

}  // namespace hearth::sm90
