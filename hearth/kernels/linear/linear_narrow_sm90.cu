// SPDX-License-Identifier: Apache-2.0
// Decode. A block a multiprocessor takes tiles of 16 rows of W in turns; a warp copies, 1 KB of K of the 16 rows and of
// the tokens a stage, eight warps multiply, each 128 bytes of K of every stage, W as the M side of the MMA and tokens
// the N side. Their sums meet in shared memory and are added in the order of the warps. W's first stages, all that
// shared memory holds, are asked for before the kernels in front have ended.
#include "hearth/kernels/linear/linear_narrow_sm90.h"

#include <algorithm>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace sm90 {
namespace {

constexpr int kWarps = 8, kMultipliers = 32 * kWarps, kThreads = kMultipliers + 32;
constexpr int kRows = kNarrowRows, kTileTokens = 8;  // of an MMA's output
constexpr int kPieceBytes = 128;                     // of a row: what a warp has of a stage
constexpr int kWeightBytes = kWarps * kRows * kPieceBytes;
constexpr int kBarrierOfWork = 1;  // named, of the multipliers

struct NarrowMaps {
  CUtensorMap x, weight[kNarrowMostParts];
};

struct NarrowParams {
  NarrowProduct product;
  int first_tile[kNarrowMostParts];
  int tiles;
  int stages;  // of a tile
};

// A stage in shared memory: for each warp, 128 bytes of K of 16 rows of W, then of the tokens, swizzled.
template <int kTiles>
struct Config {
  static constexpr int kTokens = kTiles * kTileTokens;
  static constexpr int kStageBytes = kWeightBytes + kWarps * kTokens * kPieceBytes;
  static constexpr int kSumStride = kRows + 1;
  static constexpr int kSums = kWarps * kTokens * kSumStride;  // twice: one is read while the other is written
  // All that a block may have, less room for alignment, the barriers and small kernels.
  static constexpr int kStages = (226 * 1024 - kSharedLeft - 2 * kSums * 4) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kSums * 4 + 1024;
};

// d += a b: two registers each of W's rows r and r + 8, two of x.
template <bool kFp8>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kFp8) {
    mma_e4m3(d, a, b0, b1);
  } else {
    mma_bf16(d, a, b0, b1);
  }
}

// The stages of a block's tiles, one after the other.
struct Walk {
  int tile, stage = 0;
  __device__ __forceinline__ bool done(const NarrowParams& p) const { return tile >= p.tiles; }
  __device__ __forceinline__ void next(const NarrowParams& p) {
    if (++stage == p.stages) stage = 0, tile += static_cast<int>(gridDim.x);
  }
};

template <bool kFp8, int kTiles>
class NarrowBlock {
 public:
  using Shape = Config<kTiles>;
  static constexpr int kStages = Shape::kStages;

  __device__ NarrowBlock(const NarrowParams& p, std::byte* shared, MBarrier* full, MBarrier* empty)
      : p_(p), shared_(shared), full_(full), empty_(empty) {}

  // One thread.
  __device__ void copy(const NarrowMaps& maps) {
    const int first_tile = static_cast<int>(blockIdx.x);
    Walk weights{first_tile};
    for (int slot = 0; slot < kStages && !weights.done(p_); ++slot, weights.next(p_)) copy_weight(maps, slot, weights);
    prefetch_tensor_map(maps.x);
    pdl_wait();
    int slot = 0, parity = 1;
    bool again = false;  // the ring has been filled once
    for (Walk walk{first_tile}; !walk.done(p_); walk.next(p_)) {
      if (again) {
        empty_[slot].wait(parity);
        copy_weight(maps, slot, walk);
      }
      copy_tensor(tokens_at(slot), maps.x, 0, 0, walk.stage * kWarps, full_[slot]);
      if (++slot == kStages) slot = 0, parity ^= 1, again = true;
    }
  }

  // The multipliers.
  __device__ void multiply_tiles() {
    pdl_wait();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4;
    // K's order within a piece is free as long as W and x have the same: a lane takes 32 neighbouring bytes.
    const int low_at = static_cast<int>(swizzled_offset(r, lane % 4 * 32)), second = r % 2 == 0 ? 16 : -16;
    const int element_token = threadIdx.x / kRows, element_row = threadIdx.x % kRows;
    const bool has_element = element_token < p_.product.m;
    float x_scale = 1;
    if (has_element && p_.product.x_scale != nullptr) x_scale = p_.product.x_scale[element_token];
    int slot = 0, parity = 0, half = 0;
    for (int tile = static_cast<int>(blockIdx.x); tile < p_.tiles; tile += static_cast<int>(gridDim.x)) {
      const int part_index = part_of(tile);
      const NarrowPart& part = p_.product.part[part_index];
      const int row = (tile - p_.first_tile[part_index]) * kRows + element_row;
      const bool writes = has_element && row < part.n;
      // Asked for now, needed after the tile's last stage.
      float scale = 1, bias = 0, residual = 0;
      if (writes) {
        if (part.weight_scale != nullptr)
          scale = number_at(part.weight_scale, part.weight_scale_dtype, row * part.weight_scale_step);
        if (part.bias != nullptr) bias = number_at(part.bias, part.bias_dtype, row);
        if (part.residual != nullptr)
          residual = number_at(part.residual, part.out_dtype, element_token * part.residual_stride + row);
      }
      float total[kTiles][4] = {};
      for (int stage = 0; stage < p_.stages; ++stage) {
        full_[slot].wait(parity);
        multiply_piece(weight_at(slot) + warp * (kRows * kPieceBytes),
                       tokens_at(slot) + warp * (Shape::kTokens * kPieceBytes), low_at, second, total);
        __syncwarp();
        if (lane == 0) empty_[slot].arrive();
        if (++slot == kStages) slot = 0, parity ^= 1;
      }
      float* const sums = sums_at(half);
      half ^= 1;
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[(warp * Shape::kTokens + t * kTileTokens + lane % 4 * 2 + i % 2) * Shape::kSumStride + r + i / 2 * 8] =
              total[t][i];
      named_barrier(kBarrierOfWork, kMultipliers);
      if (!writes) continue;
      float y = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        y += sums[(w * Shape::kTokens + element_token) * Shape::kSumStride + element_row];
      if (part.weight_scale != nullptr) y *= scale;
      if (p_.product.x_scale != nullptr) y *= x_scale;
      if (part.bias != nullptr) y += bias;
      if (part.residual != nullptr) y += residual;
      if (part.out_dtype == DType::kF32) {
        static_cast<float*>(part.out)[element_token * part.out_stride + row] = y;
      } else {
        static_cast<__nv_bfloat16*>(part.out)[element_token * part.out_stride + row] = __float2bfloat16_rn(y);
      }
    }
  }

 private:
  __device__ __forceinline__ int part_of(int tile) const {
    int part = 0;
    while (part + 1 < p_.product.parts && tile >= p_.first_tile[part + 1]) ++part;
    return part;
  }
  __device__ __forceinline__ std::byte* weight_at(int slot) const { return shared_ + slot * Shape::kStageBytes; }
  __device__ __forceinline__ std::byte* tokens_at(int slot) const { return weight_at(slot) + kWeightBytes; }
  __device__ __forceinline__ float* sums_at(int half) const {
    return reinterpret_cast<float*>(shared_ + kStages * Shape::kStageBytes) + half * Shape::kSums;
  }

  __device__ __forceinline__ void copy_weight(const NarrowMaps& maps, int slot, const Walk& walk) {
    const int part = part_of(walk.tile);
    full_[slot].arrive_and_expect(Shape::kStageBytes);
    copy_tensor_once(weight_at(slot), maps.weight[part], 0, (walk.tile - p_.first_tile[part]) * kRows,
                     walk.stage * kWarps, full_[slot]);
  }

  // Tokens' sums of 16 rows of W over a piece; in f32 outside of the tensor cores after each, whose own sums of E4M3
  // have few bits.
  __device__ __forceinline__ static void multiply_piece(const std::byte* weight, const std::byte* tokens, int low_at,
                                                        int second, float (&total)[kTiles][4]) {
    const auto load = [](const std::byte* at) { return *reinterpret_cast<const uint4*>(at); };
    uint4 low[2], high[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      low[c] = load(weight + low_at + c * second);
      high[c] = load(weight + 8 * kPieceBytes + low_at + c * second);
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float sum[4] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const uint4 x = load(tokens + t * (kTileTokens * kPieceBytes) + low_at + c * second);
        multiply<kFp8>(sum, {low[c].x, high[c].x, low[c].y, high[c].y}, x.x, x.y);
        multiply<kFp8>(sum, {low[c].z, high[c].z, low[c].w, high[c].w}, x.z, x.w);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) total[t][i] += sum[i];
    }
  }

  const NarrowParams& p_;
  std::byte* const shared_;
  MBarrier *const full_, *const empty_;
};

template <bool kFp8, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    linear_narrow_kernel(const __grid_constant__ NarrowParams p, const __grid_constant__ NarrowMaps maps) {
  extern __shared__ std::byte raw[];
  constexpr int kStages = Config<kTiles>::kStages;
  __shared__ MBarrier full[kStages], empty[kStages];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(kWarps);
    fence_barrier_init();
  }
  __syncthreads();
  pdl_launch_next();
  NarrowBlock<kFp8, kTiles> block(p, shared, full, empty);
  if (threadIdx.x < kMultipliers) {
    block.multiply_tiles();
  } else if (threadIdx.x == kMultipliers) {
    block.copy(maps);
  }
}

template <bool kFp8, int kTiles>
Status start(const NarrowParams& params, const NarrowMaps& maps, int multiprocessors, void* stream) {
  const auto kernel = linear_narrow_kernel<kFp8, kTiles>;
  Launch how(dim3(static_cast<unsigned>(std::min(params.tiles, multiprocessors))), dim3(kThreads), stream);
  how.pdl = true;
  how.shared_bytes = Config<kTiles>::kSharedBytes;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes));
  return launch(how, kernel, params, maps);
}

// Rows of bytes, as boxes of `box_rows` rows by 8 pieces: [piece][row][128 bytes].
Result<CUtensorMap> map_rows(const void* base, int64_t rows, int row_bytes, int64_t stride, int box_rows) {
  return encode_tensor_map(
      base, 1,
      {.rank = 3,
       .size = {kPieceBytes, static_cast<uint64_t>(rows), static_cast<uint64_t>(row_bytes / kPieceBytes)},
       .stride_bytes = {1, static_cast<uint64_t>(rows == 1 ? row_bytes : stride), kPieceBytes},
       .box = {kPieceBytes, static_cast<uint32_t>(box_rows), kWarps}});
}

bool in_vectors(const ConstTensorView& view) {
  const int64_t stride = dtype_bytes(view.dtype, view.row_stride);
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && (view.rows() == 1 || stride % 16 == 0);
}

}  // namespace

bool fits_narrow(const ConstTensorView& x, const ConstTensorView& weight) {
  const int64_t row_bytes = dtype_bytes(weight.dtype, weight.cols());
  return row_bytes > 0 && row_bytes % kPieceBytes == 0 && row_bytes < (int64_t{1} << 30) &&
         weight.rows() < (int64_t{1} << 30) && in_vectors(x) && in_vectors(weight);
}

NarrowPart narrow_part(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  return {.weight = static_cast<const uint8_t*>(w.codes.data),
          .weight_stride = dtype_bytes(w.codes.dtype, w.codes.row_stride),
          .n = static_cast<int>(w.n),
          .weight_scale_step = 0,
          .weight_scale = nullptr,
          .bias = w.bias.data,
          .residual = args.residual.data,
          .out = args.out.data,
          .residual_stride = args.residual.row_stride,
          .out_stride = args.out.row_stride,
          .weight_scale_dtype = DType::kF32,
          .bias_dtype = w.bias.dtype,
          .out_dtype = args.out.dtype};
}

NarrowProduct narrow_product(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  return {.x = static_cast<const uint8_t*>(args.x.data),
          .x_stride = dtype_bytes(args.x.dtype, args.x.row_stride),
          .m = static_cast<int>(args.x.shape[0]),
          .row_bytes = static_cast<int>(dtype_bytes(w.codes.dtype, w.k)),
          .x_scale = nullptr,
          .parts = 1,
          .part = {narrow_part(args)}};
}

Status start_linear_narrow(const NarrowProduct& product, DType type, void* stream) {
  HEARTH_CHECK(product.m >= 1 && product.m <= kNarrowMostRows, "linear: {} tokens", product.m);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  const bool few = product.m <= kTileTokens;
  NarrowParams params{.product = product, .first_tile = {}, .tiles = 0, .stages = 0};
  params.stages = (product.row_bytes + kWarps * kPieceBytes - 1) / (kWarps * kPieceBytes);
  NarrowMaps maps;
  HEARTH_TRY_ASSIGN(
      maps.x, map_rows(product.x, product.m, product.row_bytes, product.x_stride, few ? kTileTokens : 2 * kTileTokens));
  for (int i = 0; i < product.parts; ++i) {
    const NarrowPart& part = product.part[i];
    params.first_tile[i] = params.tiles;
    params.tiles += (part.n + kRows - 1) / kRows;
    HEARTH_TRY_ASSIGN(maps.weight[i], map_rows(part.weight, part.n, product.row_bytes, part.weight_stride, kRows));
  }
  const bool fp8 = type == DType::kE4m3;
  const auto kernel = few ? (fp8 ? start<true, 1> : start<false, 1>) : (fp8 ? start<true, 2> : start<false, 2>);
  return kernel(params, maps, device->multiprocessors, stream);
}

}  // namespace sm90

Status linear_bf16_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  const int64_t m = args.x.shape[0];
  if (args.x.dtype != DType::kBf16 || args.weight->codes.dtype != DType::kBf16 || m == 0 || args.weight->n == 0 ||
      m > sm90::kNarrowMostRows || !sm90::fits_narrow(args.x, args.weight->codes))
    return linear_cublaslt(args, exec);
  return sm90::start_linear_narrow(sm90::narrow_product(args), DType::kBf16, exec.stream);
}

}  // namespace hearth
