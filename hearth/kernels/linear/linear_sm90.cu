// SPDX-License-Identifier: Apache-2.0
// linear for plain weights of any float type on CUDA cores: what the tensor cores do not take (f32 activations), and
// what they are tested against. A block computes 64 x 64 of out; K runs in one order whatever m is, so that a row of
// out depends on its row of x alone, bit for bit.
#include <type_traits>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kTile = 64, kDepth = 16, kSide = 4;  // out tile; K at once; a thread's part of the tile
constexpr int kThreads = (kTile / kSide) * (kTile / kSide);

template <class X, class W>
struct LinearParams {
  const X* x;
  const W* weight;
  const void* bias;      // f32, f16 or bf16, or null
  const void* residual;  // as out, or null
  void* out;
  int64_t x_stride, weight_stride, residual_stride, out_stride;
  int64_t m, n, k;
  DType bias_dtype;
  bool out_f32;
};

__device__ __forceinline__ float value_of(const void* from, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[i];
  if (dtype == DType::kF16) return sm90::widen(static_cast<const __half*>(from)[i]);
  return sm90::widen(static_cast<const __nv_bfloat16*>(from)[i]);
}

// Grid (columns, rows) of tiles. Thread (a, b) holds rows a + 16 i and columns b + 16 j of the tile.
template <class X, class W>
__global__ void __launch_bounds__(kThreads) linear_kernel(LinearParams<X, W> p) {
  __shared__ float x[kDepth][kTile + 1], weight[kDepth][kTile + 1];
  constexpr int kStep = kTile / kSide;
  const int a = threadIdx.x / kStep, b = threadIdx.x % kStep;
  const int64_t row0 = int64_t{blockIdx.y} * kTile, col0 = int64_t{blockIdx.x} * kTile;
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  float sum[kSide][kSide] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int e = threadIdx.x; e < kTile * kDepth; e += kThreads) {
      const int line = e / kDepth, depth = e % kDepth;
      const bool in = k0 + depth < p.k;
      x[depth][line] = in && row0 + line < p.m ? sm90::widen(p.x[(row0 + line) * p.x_stride + k0 + depth]) : 0.0f;
      weight[depth][line] =
          in && col0 + line < p.n ? sm90::widen(p.weight[(col0 + line) * p.weight_stride + k0 + depth]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      float u[kSide], v[kSide];
#pragma unroll
      for (int i = 0; i < kSide; ++i) u[i] = x[depth][a + i * kStep], v[i] = weight[depth][b + i * kStep];
#pragma unroll
      for (int i = 0; i < kSide; ++i)
#pragma unroll
        for (int j = 0; j < kSide; ++j) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kSide; ++i)
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t row = row0 + a + i * kStep, col = col0 + b + j * kStep;
      if (row >= p.m || col >= p.n) continue;
      float y = sum[i][j];
      if (p.bias != nullptr) y += value_of(p.bias, p.bias_dtype, col);
      if (p.residual != nullptr)
        y += value_of(p.residual, p.out_f32 ? DType::kF32 : DType::kBf16, row * p.residual_stride + col);
      if (p.out_f32) {
        static_cast<float*>(p.out)[row * p.out_stride + col] = y;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[row * p.out_stride + col] = __float2bfloat16_rn(y);
      }
    }
}

template <class X, class W>
Status start(const LinearArgs& args, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  const LinearParams<X, W> params{.x = static_cast<const X*>(args.x.data),
                                  .weight = static_cast<const W*>(w.codes.data),
                                  .bias = w.bias.data,
                                  .residual = args.residual.data,
                                  .out = args.out.data,
                                  .x_stride = args.x.row_stride,
                                  .weight_stride = w.codes.row_stride,
                                  .residual_stride = args.residual.row_stride,
                                  .out_stride = args.out.row_stride,
                                  .m = args.x.shape[0],
                                  .n = w.n,
                                  .k = w.k,
                                  .bias_dtype = w.bias.dtype,
                                  .out_f32 = args.out.dtype == DType::kF32};
  const int64_t row_tiles = (params.m + kTile - 1) / kTile, col_tiles = (w.n + kTile - 1) / kTile;
  if (row_tiles > 65535)
    return invalid_argument("linear: {} rows, the GPU's kernel has at most {}", params.m, 65535 * kTile);
  Launch how(dim3(static_cast<unsigned>(col_tiles), static_cast<unsigned>(row_tiles)), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, linear_kernel<X, W>, params);
}

template <class X>
Status start_of(const LinearArgs& args, ExecContext& exec) {
  switch (args.weight->codes.dtype) {
    case DType::kF32: return start<X, float>(args, exec);
    case DType::kF16: return start<X, __half>(args, exec);
    default: return start<X, __nv_bfloat16>(args, exec);
  }
}

// out = residual + bias, or either; what a product is then added to.
struct FillParams {
  const void *bias, *residual;
  void* out;
  int64_t residual_stride, out_stride, n, count;
  DType bias_dtype, out_dtype;
};

__global__ void __launch_bounds__(256) linear_fill_kernel(FillParams p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const int64_t e = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (e >= p.count) return;
  const int64_t row = e / p.n, col = e % p.n;
  float y = value_of(p.bias, p.bias_dtype, col);
  if (p.residual != nullptr) y += value_of(p.residual, p.out_dtype, row * p.residual_stride + col);
  if (p.out_dtype == DType::kF32) {
    static_cast<float*>(p.out)[row * p.out_stride + col] = y;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[row * p.out_stride + col] = __float2bfloat16_rn(y);
  }
}

}  // namespace

int64_t linear_sm90_workspace_bytes(int64_t, int64_t, int64_t, int) { return 0; }

Status linear_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (!args.weight->format.is_plain())
    return unsupported("linear: weights of format {}, this kernel has plain ones", to_string(args.weight->format));
  if (args.x.shape[0] == 0 || args.weight->n == 0) return {};
  return args.x.dtype == DType::kF32 ? start_of<float>(args, exec) : start_of<__nv_bfloat16>(args, exec);
}

Status linear_fill_cuda(const LinearArgs& args, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  const FillParams params{.bias = w.bias.data,
                          .residual = args.residual.data,
                          .out = args.out.data,
                          .residual_stride = args.residual.row_stride,
                          .out_stride = args.out.row_stride,
                          .n = w.n,
                          .count = args.x.shape[0] * w.n,
                          .bias_dtype = w.bias.dtype,
                          .out_dtype = args.out.dtype};
  Launch how(dim3(static_cast<unsigned>((params.count + 255) / 256)), dim3(256), exec.stream);
  how.pdl = true;
  return launch(how, linear_fill_kernel, params);
}

}  // namespace hearth
