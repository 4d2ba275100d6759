// SPDX-License-Identifier: Apache-2.0
// A warp copies, 16 KB of W and the tokens' 128 bytes of K a stage; two warpgroups multiply, each 64 rows of W by all
// tokens: W is the M side of wgmma, so that few tokens waste little. W's first stages, all that shared memory holds,
// are asked for before the kernels in front have ended. E4M3's sums are added up in f32 after each chunk: Hopper's
// tensor cores keep few bits of them. Partial sums of tiles that blocks share meet in global memory, added in the order
// of K.
#include "hearth/kernels/linear/linear_stream_sm90.h"

#include <algorithm>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/sm90/flags.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kMultipliers = 256;  // threads: two warpgroups
constexpr int kThreads = kMultipliers + 32;
constexpr int kWeightBytes = kStreamRows * kStreamChunkBytes;
constexpr int kVector = 8;         // outputs of a thread at once
constexpr int kBarrierOfWork = 1;  // named, of the multipliers

struct StreamMaps {
  CUtensorMap x, weight[kNarrowMostParts];
};

struct StreamParams {
  NarrowProduct product;
  StreamPlan plan;
  int first_tile[kNarrowMostParts];
  bool in_vectors[kNarrowMostParts];  // out and residual may be moved 16 bytes at once
  float* partial;                     // [blocks][kTokens / 2][kMultipliers]
  uint32_t* ready;                    // [blocks]: its partial sums are there
};

template <int kTokens>
struct Config {
  static constexpr int kStageBytes = kWeightBytes + kTokens * kStreamChunkBytes;
  static constexpr int kOutStride = kStreamRows + 4;
  static constexpr int kOutBytes = kTokens * kOutStride * 4;
  // All that a block may have, less room for alignment, the barriers and small kernels. Half of it, so that two blocks
  // share a multiprocessor, is slower in a model: blocks of the next linear that come while the last of this one run
  // are two on some multiprocessors and none on others.
  static constexpr int kStages = (226 * 1024 - kSharedLeft - kOutBytes) / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + kOutBytes + 1024;
};

template <int kTokens>
class StreamBlock {
 public:
  using Shape = Config<kTokens>;
  static constexpr int kStages = Shape::kStages, kSums = kTokens / 2;

  __device__ StreamBlock(const StreamParams& p, std::byte* shared, MBarrier* full, MBarrier* empty)
      : p_(p),
        shared_(shared),
        full_(full),
        empty_(empty),
        block_(static_cast<int>(blockIdx.x)),
        begin_(p.plan.begin(block_)),
        end_(p.plan.begin(block_ + 1)) {}

  // One thread.
  __device__ void copy(const StreamMaps& maps) {
    const int held = static_cast<int>(min(int64_t{kStages}, end_ - begin_));
    for_each_unit([&](int unit, int tile, int chunk) {
      if (unit < held) copy_weight(maps, unit, tile, chunk);
    });
    pdl_wait();
    for_each_unit([&](int unit, int tile, int chunk) {
      const int stage = unit % kStages;
      if (unit >= held) {
        empty_[stage].wait_or_fault(unit / kStages % 2 ^ 1);
        copy_weight(maps, unit, tile, chunk);
      }
      copy_tensor(tokens_at(stage), maps.x, chunk * kStreamChunkBytes, 0, full_[stage]);
    });
  }

  // The multipliers.
  __device__ void multiply() {
    pdl_wait();
    int unit = 0;
    for (int64_t end = end_; end > begin_;) {
      const StreamSegment segment = last_segment(begin_, end, p_.plan.chunks);
      float total[kSums] = {};
      for (int chunk = segment.first; chunk < segment.last; ++chunk, ++unit) multiply_chunk(unit, total);
      if (segment.last < p_.plan.chunks) {
        leave(total);
      } else {
        if (segment.first > 0) collect(segment, total);
        write(segment.tile, total);
      }
      end -= segment.last - segment.first;
    }
  }

 private:
  template <class F>
  __device__ __forceinline__ void for_each_unit(const F& f) const {
    int unit = 0;
    for (int64_t end = end_; end > begin_;) {
      const StreamSegment segment = last_segment(begin_, end, p_.plan.chunks);
      for (int chunk = segment.first; chunk < segment.last; ++chunk) f(unit++, segment.tile, chunk);
      end -= segment.last - segment.first;
    }
  }
  __device__ __forceinline__ int part_of(int tile) const {
    int part = 0;
    while (part + 1 < p_.product.parts && tile >= p_.first_tile[part + 1]) ++part;
    return part;
  }
  __device__ __forceinline__ std::byte* weight_at(int stage) const { return shared_ + stage * Shape::kStageBytes; }
  __device__ __forceinline__ std::byte* tokens_at(int stage) const { return weight_at(stage) + kWeightBytes; }
  __device__ __forceinline__ float* out_at() const {
    return reinterpret_cast<float*>(shared_ + kStages * Shape::kStageBytes);
  }

  __device__ __forceinline__ void copy_weight(const StreamMaps& maps, int unit, int tile, int chunk) {
    const int stage = unit % kStages, part = part_of(tile);
    full_[stage].arrive_and_expect(Shape::kStageBytes);
    copy_tensor_once(weight_at(stage), maps.weight[part], chunk * kStreamChunkBytes,
                     (tile - p_.first_tile[part]) * kStreamRows, full_[stage]);
  }

  __device__ __forceinline__ void multiply_chunk(int unit, float (&total)[kSums]) {
    const int stage = unit % kStages;
    full_[stage].wait_or_fault(unit / kStages % 2);
    const uint32_t weight = shared_address(weight_at(stage)) + threadIdx.x / 128 * (64 * kStreamChunkBytes);
    const uint32_t tokens = shared_address(tokens_at(stage));
    float sum[kSums] = {};
    pin_registers(sum);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      wgmma_e4m3<kTokens>(sum, wgmma_operand(weight + 32 * step), wgmma_operand(tokens + 32 * step), step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin_registers(sum);
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] += sum[i];
    if (threadIdx.x % 32 == 0) empty_[stage].arrive();
  }

  __device__ float* partial_of(int block) const {
    return p_.partial + int64_t{block} * kSums * kMultipliers + threadIdx.x;
  }
  // For the block that ends the tile.
  __device__ void leave(const float (&total)[kSums]) {
    float* const to = partial_of(block_);
#pragma unroll
    for (int i = 0; i < kSums; ++i) to[i * kMultipliers] = total[i];
    __threadfence();
    named_barrier(kBarrierOfWork, kMultipliers);
    if (threadIdx.x == 0) store_release(p_.ready + block_, 1);
  }
  // Adds what the blocks before this one have of the tile, the lowest first.
  __device__ void collect(const StreamSegment& segment, float (&total)[kSums]) {
    const int64_t tile_begin = int64_t{segment.tile} * p_.plan.chunks;
    int first = block_ - 1;
    while (p_.plan.begin(first) > tile_begin) --first;
    float sum[kSums] = {};
    for (int block = first; block < block_; ++block) {
      if (threadIdx.x == 0) wait_acquire(p_.ready + block, 1);
      named_barrier(kBarrierOfWork, kMultipliers);
      const float* const from = partial_of(block);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sum[i] += __ldcg(from + i * kMultipliers);
    }
    named_barrier(kBarrierOfWork, kMultipliers);  // all have seen the flags
    for (int block = first + static_cast<int>(threadIdx.x); block < block_; block += kMultipliers) p_.ready[block] = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] = sum[i] + total[i];
  }

  // A tile's rows of out, by way of shared memory: there a token's rows lie side by side.
  __device__ void write(int tile, const float (&total)[kSums]) {
    const int part_index = part_of(tile);
    const NarrowPart& part = p_.product.part[part_index];
    const int first_row = (tile - p_.first_tile[part_index]) * kStreamRows;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
    float* const out = out_at();
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      out[(i / 4 * 8 + column + i % 2) * Shape::kOutStride + row + i / 2 % 2 * 8] = total[i];
    named_barrier(kBarrierOfWork, kMultipliers);
    constexpr int kVectors = kStreamRows / kVector;
    for (int e = threadIdx.x; e < p_.product.m * kVectors; e += kMultipliers) {
      const int token = e / kVectors, at = e % kVectors * kVector;
      if (first_row + at < part.n)
        write_vector(part, p_.in_vectors[part_index], token, first_row + at, out + token * Shape::kOutStride + at);
    }
    named_barrier(kBarrierOfWork, kMultipliers);  // before it is written again
  }

  __device__ __forceinline__ void write_vector(const NarrowPart& part, bool in_vectors, int token, int row,
                                               const float* from) const {
    float y[kVector];
    const float x_scale = p_.product.x_scale != nullptr ? p_.product.x_scale[token] : 1.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      y[i] = from[i];
      if (row + i >= part.n) continue;
      if (part.weight_scale != nullptr)
        y[i] *= number_at(part.weight_scale, part.weight_scale_dtype, (row + i) * part.weight_scale_step);
      if (p_.product.x_scale != nullptr) y[i] *= x_scale;
      if (part.bias != nullptr) y[i] += number_at(part.bias, part.bias_dtype, row + i);
    }
    if (part.out_dtype == DType::kF32) {
      finish<float>(part, in_vectors, token, row, y);
    } else {
      finish<__nv_bfloat16>(part, in_vectors, token, row, y);
    }
  }

  template <class T>
  __device__ __forceinline__ static void finish(const NarrowPart& part, bool in_vectors, int token, int row,
                                                float (&y)[kVector]) {
    T* const to = static_cast<T*>(part.out) + token * part.out_stride + row;
    const T* const residual =
        part.residual == nullptr ? nullptr : static_cast<const T*>(part.residual) + token * part.residual_stride + row;
    if (in_vectors && row + kVector <= part.n) {
      using Numbers = Pack<T, kVector>;
      if (residual != nullptr) {
        const Numbers added = *reinterpret_cast<const Numbers*>(residual);
#pragma unroll
        for (int i = 0; i < kVector; ++i) y[i] += widen(added.at[i]);
      }
      Numbers rounded;
#pragma unroll
      for (int i = 0; i < kVector; ++i) rounded.at[i] = narrow<T>(y[i]);
      *reinterpret_cast<Numbers*>(to) = rounded;
      return;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (row + i < part.n) to[i] = narrow<T>(residual == nullptr ? y[i] : y[i] + widen(residual[i]));
  }

  const StreamParams& p_;
  std::byte* const shared_;
  MBarrier *const full_, *const empty_;
  const int block_;
  const int64_t begin_, end_;
};

template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    linear_stream_kernel(const __grid_constant__ StreamParams p, const __grid_constant__ StreamMaps maps) {
  extern __shared__ std::byte raw[];
  constexpr int kStages = Config<kTokens>::kStages;
  __shared__ MBarrier full[kStages], empty[kStages];
  std::byte* const shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) full[i].init(1), empty[i].init(kMultipliers / 32);
    fence_barrier_init();
  }
  __syncthreads();
  pdl_launch_next();
  StreamBlock<kTokens> block(p, shared, full, empty);
  if (threadIdx.x < kMultipliers) {
    block.multiply();
  } else if (threadIdx.x == kMultipliers) {
    block.copy(maps);
  }
}

template <int kTokens>
Status start(const StreamParams& params, const StreamMaps& maps, void* stream) {
  const auto kernel = linear_stream_kernel<kTokens>;
  Launch how(dim3(static_cast<unsigned>(params.plan.blocks)), dim3(kThreads), stream);
  how.pdl = true;
  how.shared_bytes = Config<kTokens>::kSharedBytes;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes));
  return launch(how, kernel, params, maps);
}

bool can_move_vectors(const NarrowPart& part) {
  const int64_t bytes = dtype_bytes(part.out_dtype, 1);
  const auto aligned = [&](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride * bytes % 16 == 0;
  };
  return aligned(part.out, part.out_stride) &&
         (part.residual == nullptr || aligned(part.residual, part.residual_stride));
}

// Rows of bytes, copied 128 columns of `box_rows` rows at once.
Result<CUtensorMap> map_rows(const void* base, int64_t rows, int columns, int64_t stride, int box_rows) {
  return encode_tensor_map(base, 1,
                           {.size = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
                            .stride_bytes = {1, static_cast<uint64_t>(stride)},
                            .box = {kStreamChunkBytes, static_cast<uint32_t>(box_rows)}});
}

// start<kTokens>(), for the least kTokens that is `tokens` or more.
using Start = Status (*)(const StreamParams&, const StreamMaps&, void*);
struct Instance {
  int tokens;
  Start start;
  int64_t shared_bytes;
};
template <int kTokens>
constexpr Instance kInstance{kTokens, start<kTokens>, Config<kTokens>::kSharedBytes};
Instance instance_of(int tokens) { return tokens <= 32 ? kInstance<32> : kInstance<64>; }

static_assert(StagedMemory::kCounters >= kStreamMostBlocks, "a step's counters are the blocks' flags");
constexpr int64_t kReadyBytes = kStreamMostBlocks * int64_t{sizeof(uint32_t)};

}  // namespace

bool fits_stream(const ConstTensorView& x, const ConstTensorView& weight) {
  const auto fits = [](const ConstTensorView& view) {
    return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && dtype_bytes(view.dtype, view.row_stride) % 16 == 0 &&
           view.rows() < (int64_t{1} << 30);
  };
  return x.cols() > 0 && dtype_bytes(x.dtype, x.cols()) < (int64_t{1} << 30) && fits(x) && fits(weight);
}

int64_t linear_stream_workspace_bytes() {
  return kReadyBytes + kStreamMostBlocks * kStreamMostTokens * kStreamRows * int64_t{sizeof(float)};
}

Status start_linear_stream(const NarrowProduct& product, std::span<std::byte> workspace, uint32_t* counters,
                           void* stream) {
  HEARTH_CHECK(product.m >= 1 && product.m <= kStreamMostTokens, "linear: {} tokens", product.m);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  if (static_cast<int64_t>(workspace.size()) < linear_stream_workspace_bytes())
    return resource_exhausted("linear: a workspace of {} bytes, wanted {}", workspace.size(),
                              linear_stream_workspace_bytes());
  StreamParams params{.product = product, .plan = plan_linear_stream(product, device->multiprocessors)};
  params.ready = counters;
  if (counters == nullptr) {
    params.ready = reinterpret_cast<uint32_t*>(workspace.data());
    HEARTH_CUDA_TRY(cudaMemsetAsync(params.ready, 0, kReadyBytes, static_cast<cudaStream_t>(stream)));
  }
  params.partial = reinterpret_cast<float*>(workspace.data() + kReadyBytes);
  const Instance instance = instance_of(product.m);
  if (instance.shared_bytes > device->block_shared_bytes)
    return unsupported("linear: a block of this GPU has {} bytes of shared memory, wanted {}",
                       device->block_shared_bytes, instance.shared_bytes);
  StreamMaps maps;
  HEARTH_TRY_ASSIGN(maps.x, map_rows(product.x, product.m, product.row_bytes, product.x_stride, instance.tokens));
  for (int i = 0, tile = 0; i < product.parts; ++i) {
    const NarrowPart& part = product.part[i];
    params.first_tile[i] = tile;
    params.in_vectors[i] = can_move_vectors(part);
    tile += (part.n + kStreamRows - 1) / kStreamRows;
    HEARTH_TRY_ASSIGN(maps.weight[i],
                      map_rows(part.weight, part.n, product.row_bytes, part.weight_stride, kStreamRows));
  }
  return instance.start(params, maps, stream);
}

}  // namespace hearth::sm90
