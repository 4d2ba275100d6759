// SPDX-License-Identifier: Apache-2.0
// The linear of few tokens, W of bf16 or E4M3. A block a multiprocessor takes tiles of 16 rows of W in turns:
//   one thread copies, 8 pieces of K of the 16 rows and of the tokens a stage; W's first stages, all that shared memory
//     holds, are asked for before the kernels in front have ended;
//   eight warps multiply, each a piece of a stage, W as the M side of the MMA and tokens the N side;
//   two warps end tiles: the multipliers' sums meet in shared memory and are added in the order of the warps.
// So nobody who multiplies waits for memory that is not W or x.
//
// What multiplies is a Codec:
//   Lane          where a lane's part of a piece lies; made from its number once
//   multiply<kTiles>(weight, tokens, lane, sum): adds the piece's products of W's rows r and r + 8 to sum, as mma.cuh's D
//                 says; both of 128-byte rows, swizzled
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
constexpr int kRingBuffers = 2;  // of sums: one is read while the other is written
constexpr int kRingEndThreads = 64;
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
  int stages;  // of a tile
};

// Shared memory: slots (for each piece of a stage 16 rows of W, then the tokens), and twice the warps' sums.
template <int kTiles>
struct RingShape {
  static constexpr int kTokens = kTiles * kRingTileTokens;
  static constexpr int kPieceWeightBytes = kRingRows * kChunkBytes;
  static constexpr int kPieceTokenBytes = kTokens * kChunkBytes;
  static constexpr int kWeightBytes = kRingWarps * kPieceWeightBytes;
  static constexpr int kSlotBytes = kWeightBytes + kRingWarps * kPieceTokenBytes;
  static constexpr int kSumStride = kRingRows + 1;
  static constexpr int kSums = kRingWarps * kTokens * kSumStride;
  static_assert(kSlotBytes % 1024 == 0);

  // Threads: multipliers, then the one that copies, those that end tiles.
  static constexpr int kMultipliers = 32 * kRingWarps;
  static constexpr int kFirstEnding = kMultipliers + 32, kThreads = kFirstEnding + kRingEndThreads;

  static constexpr int kSumBytes = kRingBuffers * kSums * 4;
  // As many as fit.
  static constexpr int kFit = (kRingSharedBytes - 1024 - kSumBytes) / kSlotBytes;
  static constexpr int kSlots = kFit < kRingMostSlots ? kFit : kRingMostSlots;
  static constexpr int kSharedBytes = kSlots * kSlotBytes + kSumBytes + 1024;
};

struct RingBarriers {
  MBarrier full[kRingMostSlots], empty[kRingMostSlots];
  MBarrier sums_full[kRingBuffers], sums_empty[kRingBuffers];
};

template <class Codec, int kTiles>
class RingBlock {
 public:
  using Shape = RingShape<kTiles>;

  __device__ RingBlock(const RingParams& p, std::byte* shared, RingBarriers& barriers)
      : p_(p), shared_(shared), barriers_(barriers) {}

  // One thread.
  __device__ void copy(const RingMaps& maps) {
    Walk weights = begin();
    for (int slot = 0; slot < Shape::kSlots && !done(weights); ++slot, next(weights)) copy_weight(maps, slot, weights);
    prefetch_tensor_map(maps.x);
    pdl_wait();
    int slot = 0, parity = 1;
    bool again = false;  // the ring has been filled once
    for (Walk walk = begin(); !done(walk); next(walk)) {
      if (again) {
        barriers_.empty[slot].wait(parity);
        copy_weight(maps, slot, walk);
      }
      copy_tensor(tokens_at(slot), maps.x, 0, 0, walk.stage * kRingWarps, barriers_.full[slot]);
      if (++slot == Shape::kSlots) slot = 0, parity ^= 1, again = true;
    }
  }

  // The multipliers.
  __device__ void multiply() {
    pdl_wait();
    const Piece piece(threadIdx.x / 32, threadIdx.x % 32);
    int slot = 0, parity = 0;
    Buffer buffer;
    for (int tile = static_cast<int>(blockIdx.x); tile < p_.tiles; tile += static_cast<int>(gridDim.x), buffer.next()) {
      float total[kTiles][4] = {};
      for (int stage = 0; stage < p_.stages; ++stage) {
        multiply_stage(piece, slot, parity, total);
        if (++slot == Shape::kSlots) slot = 0, parity ^= 1;
      }
      barriers_.sums_empty[buffer.index].wait(buffer.parity ^ 1);
      leave(total, sums_at(buffer.index));
      barriers_.sums_full[buffer.index].arrive();
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
        if (part.weight_scale != nullptr)
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
        for (int w = 0; w < kRingWarps; ++w)
          y[i] += sums[(w * Shape::kTokens + first_token + i * kTokenStep) * Shape::kSumStride + row_in_tile];
      uint32_t outcome = 0;
#pragma unroll
      for (int i = 0; i < kElements; ++i) outcome |= __float_as_uint(y[i]);
      barriers_.sums_empty[buffer.index].arrive_behind_loads(outcome);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (!writes(i)) continue;
        const int token = first_token + i * kTokenStep;
        if (part.weight_scale != nullptr) y[i] *= value_of_stored(row_scale, part.weight_scale_dtype);
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
    return reinterpret_cast<float*>(shared_ + Shape::kSlots * Shape::kSlotBytes) + buffer * Shape::kSums;
  }

  // Where a warp's piece of a stage lies, and the lane's part of that.
  struct Piece {
    const int lane, weight, tokens;  // bytes in a slot
    const typename Codec::Lane part;

    __device__ __forceinline__ Piece(int w, int l)
        : lane(keep(l)),
          weight(keep(w * Shape::kPieceWeightBytes)),
          tokens(keep(Shape::kWeightBytes + w * Shape::kPieceTokenBytes)),
          part(l) {}
  };

  // A warp's piece of a stage.
  __device__ __forceinline__ void multiply_stage(const Piece& piece, int slot, int parity,
                                                 float (&total)[kTiles][4]) const {
    barriers_.full[slot].wait(parity);
    // Sums in f32 outside of the tensor cores after each piece: their own sums of E4M3 have few bits.
    float sum[kTiles][4] = {};
    const std::byte* const at = weight_at(slot);
    Codec::template multiply<kTiles>(at + piece.weight, at + piece.tokens, piece.part, sum);
    uint32_t outcome = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) outcome |= __float_as_uint(sum[t][0]);
    __syncwarp();
    if (piece.lane == 0) barriers_.empty[slot].arrive_behind_loads(outcome);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[t][i] += sum[t][i];
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
__global__ void __launch_bounds__(RingShape<kTiles>::kThreads, 1)
    linear_ring_kernel(const __grid_constant__ RingParams p, const __grid_constant__ RingMaps maps) {
  using Shape = RingShape<kTiles>;
  extern __shared__ std::byte raw[];
  __shared__ RingBarriers barriers;
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kSlots; ++i) barriers.full[i].init(1), barriers.empty[i].init(kRingWarps);
    for (int i = 0; i < kRingBuffers; ++i) {
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
  } else if (thread >= Shape::kFirstEnding) {
    block.end_tiles(thread - Shape::kFirstEnding);
  }
}

// Rows of bytes, a stage's pieces of `box_rows` rows at once: [chunk][row][kChunkBytes].
inline Result<CUtensorMap> map_pieces(const void* base, int64_t rows, int row_bytes, int64_t stride, int box_rows) {
  return encode_tensor_map(
      base, 1,
      {.rank = 3,
       .size = {kChunkBytes, static_cast<uint64_t>(rows), static_cast<uint64_t>(row_bytes / kChunkBytes)},
       .stride_bytes = {1, static_cast<uint64_t>(rows == 1 ? row_bytes : stride), kChunkBytes},
       .box = {kChunkBytes, static_cast<uint32_t>(box_rows), kRingWarps}});
}

// REQUIRES: rows of whole pieces, in 16-byte vectors.
template <class Codec, int kTiles>
Status start_ring_tiles(const NarrowProduct& product, const CudaDeviceInfo& device, void* stream) {
  using Shape = RingShape<kTiles>;
  const int pieces = product.row_bytes / kChunkBytes;
  RingParams params{.product = product, .first_tile = {}, .tiles = 0, .stages = (pieces + kRingWarps - 1) / kRingWarps};
  RingMaps maps;
  HEARTH_TRY_ASSIGN(maps.x, map_pieces(product.x, product.m, product.row_bytes, product.x_stride, Shape::kTokens));
  for (int i = 0; i < product.parts; ++i) {
    const NarrowPart& part = product.part[i];
    params.first_tile[i] = params.tiles;
    params.tiles += (part.n + kRingRows - 1) / kRingRows;
    HEARTH_TRY_ASSIGN(maps.weight[i],
                      map_pieces(part.weight, part.n, product.row_bytes, part.weight_stride, kRingRows));
  }
  const auto kernel = linear_ring_kernel<Codec, kTiles>;
  Launch how(dim3(static_cast<unsigned>(std::min(params.tiles, device.multiprocessors))), dim3(Shape::kThreads),
             stream);
  how.pdl = true;
  how.shared_bytes = Shape::kSharedBytes;
  if (kRingSharedBytes > device.block_shared_bytes)
    return unsupported("linear: a block of this GPU has {} bytes of shared memory, wanted {}",
                       device.block_shared_bytes, kRingSharedBytes);
  HEARTH_TRY(enter_cuda_device());
  // The same for every product: another thread may be about to start this kernel.
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingSharedBytes));
  return launch(how, kernel, params, maps);
}

template <class Codec>
Status start_ring(const NarrowProduct& product, void* stream) {
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  return product.m <= kRingTileTokens ? start_ring_tiles<Codec, 1>(product, *device, stream)
                                      : start_ring_tiles<Codec, 2>(product, *device, stream);
}

}  // namespace hearth::sm90
