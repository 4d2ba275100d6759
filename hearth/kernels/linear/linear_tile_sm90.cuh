// SPDX-License-Identifier: Apache-2.0
// The linear layer on CUDA cores in f32, for weights that a decoder reads (linear_decode_sm90.cuh): a block computes a
// tile of out, its weights are decoded into shared memory, and no decoded copy of W exists elsewhere.
//   I1. Every output is one chain of fused multiply-adds along K, in order, whatever the tile: a row of out is a
//       function of its row of x alone, bit for bit. With kGroups a chain ends with its group of columns; the groups'
//       sums, times their two scales, are added in order.
//   I2. Two stages of shared memory: one is multiplied while the next one's numbers travel through registers. The
//       barrier at the end of a step is for all threads: nobody reads the stage that the next step fills.
#pragma once

#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_sm90_plan.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {

inline bool is_aligned(const void* at, int64_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

template <class X>
struct TileParams {
  const X* x;
  const float* x_scale;  // of row r and group g at r * x_scale_stride + g; null: 1
  const void* bias;      // f32, f16 or bf16, or null
  const void* residual;  // as out, or null
  void* out;             // f32 or bf16
  int64_t x_stride, x_scale_stride, residual_stride, out_stride;
  int m, n, k;
  int group;  // columns of a chain with kGroups, a multiple of kChunk or K
  DType bias_dtype, out_dtype;
  bool x_aligned;  // rows of x are aligned for packs of 4

  void set_x(const X* rows, int64_t stride) {
    x = rows, x_stride = stride;
    x_aligned = is_aligned(rows, 4 * sizeof(X)) && stride % 4 == 0;
  }
};

// All of TileParams but x, for rows [begin, begin + rows) of out.
template <class X>
TileParams<X> tile_params(const LinearArgs& args, int64_t begin, int64_t rows) {
  const ConstTensorView residual = args.residual ? args.residual.slice_rows(begin, rows) : ConstTensorView();
  const TensorView out = args.out.slice_rows(begin, rows);
  return {.bias = args.weight->bias.data,
          .residual = residual.data,
          .out = out.data,
          .residual_stride = residual.row_stride,
          .out_stride = out.row_stride,
          .m = static_cast<int>(rows),
          .n = static_cast<int>(args.weight->n),
          .k = static_cast<int>(args.weight->k),
          .bias_dtype = args.weight->bias.dtype,
          .out_dtype = out.dtype};
}

// Rows and columns are counted in 32 bits here, and tiles across in 16.
inline Status check_size(const LinearArgs& args) {
  constexpr int64_t kMaxM = int64_t{1} << 30, kMaxK = int64_t{1} << 28;
  constexpr int64_t kMaxN = int64_t{65535} * tile_shape(TileSize::kDecode).cols;
  if (args.x.shape[0] <= kMaxM && args.weight->k <= kMaxK && args.weight->n <= kMaxN) return {};
  return unsupported("linear: x of {} rows by a weight [{}, {}], the GPU's kernel has at most {} by [{}, {}]",
                     args.x.shape[0], args.weight->n, args.weight->k, kMaxM, kMaxN, kMaxK);
}

// What the kernel needs to know of a tile (linear_sm90_plan.h). nvcc's stubs take no class as a template argument.
template <TileSize kSize>
struct Tile {
  static constexpr TileShape kShape = tile_shape(kSize);
  static constexpr int kRows = kShape.rows, kCols = kShape.cols, kDepth = kShape.depth, kSide = kShape.side;
  static constexpr int kThreads = kShape.threads();
  static constexpr int kVector = kSide < 4 ? kSide : 4;
  // Rows of shared memory keep vectors of kVector aligned, and start in different banks.
  static constexpr int kPad = kVector;
  static constexpr int kXPacks = kRows * kDepth / 4 / kThreads;  // of a thread and step
  static constexpr int kWChunks = kCols * kDepth / kChunk / kThreads;
  static_assert(kXPacks * kThreads * 4 == kRows * kDepth && kWChunks * kThreads * kChunk == kCols * kDepth);

  struct Memory {
    alignas(16) float x[2][kDepth][kRows + kPad];
    alignas(16) float w[2][kDepth][kCols + kPad];
  };
  static_assert(sizeof(Memory) <= 48 * 1024 - 256);

  // Who loads what: neighbouring threads take neighbouring lines (rows of x, columns of out), and `kAlong` of them lie
  // along K. Two packs of x, a sector of memory, are 16 banks apart where kPad is 4; chunks of weights have a line
  // each.
  static constexpr bool kWide = kVector == 4;
  static constexpr int kXAlong = kWide ? 2 : kDepth / 4, kWAlong = kWide ? 1 : kDepth / kChunk;
  static __device__ __forceinline__ int line_of(int e, int lines, int along) { return e / along % lines; }
  static __device__ __forceinline__ int step_of(int e, int lines, int along) {
    return e / (along * lines) * along + e % along;
  }

  // Place within `length` of a thread's number `i`, the thread being `at` in that direction.
  static __device__ __forceinline__ int place(int length, int at, int i) {
    return i / kVector * (length / (kSide / kVector)) + at * kVector + i % kVector;
  }

  // sum += x w over 8 steps of depth.
  static __device__ __forceinline__ void multiply(const float (*x)[kRows + kPad], const float (*w)[kCols + kPad],
                                                  int down, int across, float (&sum)[kSide][kSide]) {
    using Vector = Pack<float, kVector>;
#pragma unroll
    for (int depth = 0; depth < kChunk; ++depth) {
      Vector u[kSide / kVector], v[kSide / kVector];
#pragma unroll
      for (int i = 0; i < kSide / kVector; ++i) {
        u[i] = *reinterpret_cast<const Vector*>(&x[depth][place(kRows, down, i * kVector)]);
        v[i] = *reinterpret_cast<const Vector*>(&w[depth][place(kCols, across, i * kVector)]);
      }
#pragma unroll
      for (int i = 0; i < kSide; ++i)
#pragma unroll
        for (int j = 0; j < kSide; ++j)
          sum[i][j] = fmaf(u[i / kVector].at[i % kVector], v[j / kVector].at[j % kVector], sum[i][j]);
    }
  }
};

// Columns [k, k + 4) of a row of x; 0 beyond K.
template <class X>
__device__ __forceinline__ Pack<X, 4> load_x(const TileParams<X>& p, int64_t row, int k) {
  const X* from = p.x + row * p.x_stride + k;
  if (p.x_aligned && k + 4 <= p.k) return *reinterpret_cast<const Pack<X, 4>*>(from);
  Pack<X, 4> pack;
#pragma unroll
  for (int i = 0; i < 4; ++i) pack.at[i] = k + i < p.k ? from[i] : X(0.0f);
  return pack;
}

template <class X>
__device__ __forceinline__ void store_out(const TileParams<X>& p, int row, int col, float y) {
  if (p.bias != nullptr) y = __fadd_rn(y, number_at(p.bias, p.bias_dtype, col));
  if (p.residual != nullptr) y = __fadd_rn(y, number_at(p.residual, p.out_dtype, row * p.residual_stride + col));
  if (p.out_dtype == DType::kF32) {
    static_cast<float*>(p.out)[row * p.out_stride + col] = y;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[row * p.out_stride + col] = __float2bfloat16_rn(y);
  }
}

// Grid (rows, columns) of tiles: the tiles that share weights run at the same time.
template <TileSize kSize, class X, class Decoder, bool kGroups>
__global__ void __launch_bounds__(tile_shape(kSize).threads(), tile_shape(kSize).blocks(kGroups))
    linear_tile_kernel(const __grid_constant__ TileParams<X> p,
                       const __grid_constant__ typename Decoder::Params weight) {
  using T = Tile<kSize>;
  constexpr TileShape kShape = T::kShape;
  constexpr int kSide = T::kSide, kDepth = T::kDepth;
  __shared__ typename T::Memory memory;
  __shared__ typename Decoder::Shared table;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarpsAcross = T::kCols / kSide / kShape.lanes_across;
  const int across = warp % kWarpsAcross * kShape.lanes_across + lane % kShape.lanes_across;
  const int down = warp / kWarpsAcross * (32 / kShape.lanes_across) + lane / kShape.lanes_across;
  const int row0 = blockIdx.x * T::kRows, col0 = blockIdx.y * T::kCols;

  // Rows and columns beyond the edge read the last one's numbers; nobody writes what comes of them.
  Decoder decoders[T::kWChunks];
  Pack<X, 4> packs[T::kXPacks];
  const auto chunk_col = [](int i) { return T::line_of(threadIdx.x + i * T::kThreads, T::kCols, T::kWAlong); };
  const auto chunk_depth = [](int i) {
    return T::step_of(threadIdx.x + i * T::kThreads, T::kCols, T::kWAlong) * kChunk;
  };
  const auto pack_row = [](int i) { return T::line_of(threadIdx.x + i * T::kThreads, T::kRows, T::kXAlong); };
  const auto pack_depth = [](int i) { return T::step_of(threadIdx.x + i * T::kThreads, T::kRows, T::kXAlong) * 4; };
#pragma unroll
  for (int i = 0; i < T::kWChunks; ++i) decoders[i].begin(weight, min(col0 + chunk_col(i), p.n - 1));
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < T::kWChunks; ++i) decoders[i].fetch(weight, k0 + chunk_depth(i), p.k);
#pragma unroll
    for (int i = 0; i < T::kXPacks; ++i) packs[i] = load_x(p, min(row0 + pack_row(i), p.m - 1), k0 + pack_depth(i));
  };
  const auto store = [&](int stage, int k0) {
#pragma unroll
    for (int i = 0; i < T::kWChunks; ++i)
      decoders[i].decode(weight, table, k0 + chunk_depth(i), p.k,
                         [&](int j, float value) { memory.w[stage][chunk_depth(i) + j][chunk_col(i)] = value; });
#pragma unroll
    for (int i = 0; i < T::kXPacks; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) memory.x[stage][pack_depth(i) + j][pack_row(i)] = widen(packs[i].at[j]);
  };

  float sum[kSide][kSide] = {}, total[kGroups ? kSide : 1][kGroups ? kSide : 1] = {};
  int group = 0, left = p.group;
  // total += the sums of a group, times its scales.
  const auto end_group = [&] {
    float scale[kSide];
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      scale[j] = Decoder::scale(weight, min(col0 + T::place(T::kCols, across, j), p.n - 1), group);
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int64_t row = min(row0 + T::place(T::kRows, down, i), p.m - 1);
      const float x_scale = p.x_scale[row * p.x_scale_stride + group];
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        total[kGroups ? i : 0][kGroups ? j : 0] =
            fmaf(__fmul_rn(x_scale, scale[j]), sum[i][j], total[kGroups ? i : 0][kGroups ? j : 0]);
        sum[i][j] = 0;
      }
    }
    ++group, left = p.group;
  };

  Decoder::prepare(weight, table);
  pdl_wait();
  __syncthreads();  // all threads: the table is there
  fetch(0);
  store(0, 0);
  __syncthreads();  // all threads: stage 0 is there
  const bool has_rows = row0 + T::place(T::kRows, down, 0) < p.m;
  int stage = 0;
  for (int k0 = 0; k0 < p.k; k0 += kDepth, stage = 1 - stage) {
    const bool more = k0 + kDepth < p.k;
    if (more) fetch(k0 + kDepth);
    if (has_rows) {
#pragma unroll(kGroups || kSide == 1 ? 1 : kDepth / kChunk)
      for (int depth = 0; depth < kDepth; depth += kChunk) {
        if (k0 + depth >= p.k) break;
        T::multiply(&memory.x[stage][depth], &memory.w[stage][depth], down, across, sum);
        if (kGroups && (left -= kChunk) <= 0) end_group();
      }
    }
    if (more) store(1 - stage, k0 + kDepth);
    __syncthreads();
  }
  if (kGroups && has_rows && left < p.group) end_group();
  pdl_launch_next();

#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const int row = row0 + T::place(T::kRows, down, i);
    const float x_scale = !kGroups && p.x_scale != nullptr && row < p.m ? p.x_scale[row * p.x_scale_stride] : 1.0f;
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int col = col0 + T::place(T::kCols, across, j);
      if (row >= p.m || col >= p.n) continue;
      store_out(p, row, col, kGroups ? total[kGroups ? i : 0][kGroups ? j : 0] : __fmul_rn(x_scale, sum[i][j]));
    }
  }
}

template <TileSize kSize, class X, class Decoder, bool kGroups>
Status start_tiles(const TileParams<X>& params, const typename Decoder::Params& weight, void* stream) {
  constexpr TileShape kShape = tile_shape(kSize);
  const int rows = (params.m - 1) / kShape.rows + 1, cols = (params.n - 1) / kShape.cols + 1;
  Launch how(dim3(static_cast<unsigned>(rows), static_cast<unsigned>(cols)), dim3(kShape.threads()), stream);
  // Blocks that wait for the kernel before would crowd on the first multiprocessors that it leaves. A few tokens are
  // another matter: there the start is a large part of the time.
  how.pdl = kSize == TileSize::kDecode;
  return launch(how, linear_tile_kernel<kSize, X, Decoder, kGroups>, params, weight);
}

// The product, in tiles that suit its size.
template <class X, class Decoder, bool kGroups>
Status start_linear(const TileParams<X>& params, const typename Decoder::Params& weight, void* stream) {
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  switch (choose_tile(params.m, params.n, device->multiprocessors)) {
    case TileSize::kDecode: return start_tiles<TileSize::kDecode, X, Decoder, kGroups>(params, weight, stream);
    case TileSize::kMedium: return start_tiles<TileSize::kMedium, X, Decoder, kGroups>(params, weight, stream);
    default: return start_tiles<TileSize::kLarge, X, Decoder, kGroups>(params, weight, stream);
  }
}

}  // namespace hearth::sm90
