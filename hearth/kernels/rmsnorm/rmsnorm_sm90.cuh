// SPDX-License-Identifier: Apache-2.0
// The rmsnorm kernel for Hopper. `row_threads` threads share a row: each sums the squares of its vectors,
// a shuffle tree and, for more than a warp, shared memory add them in a fixed order, and each scales what
// it still holds in registers, and rounds that to E4M3 where it is asked to. The row's weights are read before the wait
// for the kernel in front.
#pragma once

#include <cstdint>

#include "hearth/kernels/rmsnorm/rmsnorm_sm90.h"
#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/values.cuh"

namespace hearth::sm90 {

// Tensors as the kernel sees them; strides in elements. x, residual and out may overlap as the contract
// says, so none is const __restrict__.
template <class T, class W>
struct RmsNormParams {
  const T* x;
  T* residual;  // nullptr: none
  const W* weight;
  T* out;  // with rounding nullptr: none
  int64_t x_stride, residual_stride, out_stride;
  int64_t rows;
  int hidden;
  float eps;
  // With rounding.
  uint8_t* codes;
  float* scales;              // [rows]
  const float* static_scale;  // nullptr: of the row
  int64_t codes_stride;
};

// The sum of x [kCount], a power of two, as that many lanes would add it up by shuffles of halves, quarters and so on.
template <int kCount, int kStep = 1>
__device__ __forceinline__ float tree_sum(const float* x) {
  if constexpr (kStep == kCount) {
    return *x;
  } else {
    return tree_sum<kCount, 2 * kStep>(x) + tree_sum<kCount, 2 * kStep>(x + kStep);
  }
}

// Sum over the row's threads, the same in all of them. kThreads is 32 or a multiple of it, at most 1024;
// `partial` [kThreads / 32] is shared by the block, whose threads are exactly the row's if there is more
// than one warp. The block's one __syncthreads(): every warp's lane 0 writes, then all read, which takes a warp less
// time than shuffles.
template <int kThreads>
__device__ __forceinline__ float row_sum(float sum, float* partial) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, step);
  if constexpr (kThreads > 32) {
    constexpr int kWarps = kThreads / 32;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    sum = tree_sum<kWarps>(partial);
  }
  return sum;
}

// Shared by the warps of a row.
struct RmsNormShared {
  alignas(16) float partial[32];
  unsigned largest[32];
};

// The scale of a row whose threads have seen these magnitudes, written to its place.
template <int kThreads, class T, class W>
__device__ __forceinline__ float row_scale(const RmsNormParams<T, W>& p, int64_t row, int thread, unsigned largest,
                                           RmsNormShared& shared) {
  const float scale = p.static_scale != nullptr ? *p.static_scale
                                                : e4m3_scale_of(block_largest<kThreads / 32>(largest, shared.largest));
  if (thread == 0) p.scales[row] = scale;
  return scale;
}

template <RmsNormConfig kConfig, bool kRounds, class T, class W>
__device__ __forceinline__ void rmsnorm_vectors(const RmsNormParams<T, W>& p, int64_t row, int thread,
                                                RmsNormShared& shared) {
  constexpr int kCount = 16 / sizeof(T), kThreads = kConfig.row_threads, kVectors = kConfig.row_vectors;
  const int vectors = p.hidden / kCount;
  const auto* const weight_row = reinterpret_cast<const Pack<W, kCount>*>(p.weight);
  // Before the wait where 16 registers hold them; with more the kernel would spill.
  constexpr bool kEarlyWeights = kVectors * kCount * sizeof(W) <= 64;
  Pack<W, kCount> weight[kVectors];
  if constexpr (kEarlyWeights) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (const int i = thread + v * kThreads; i < vectors) weight[v] = weight_row[i];
  }
  pdl_launch_next();
  pdl_wait();

  Pack<T, kCount> sum[kVectors], residual[kVectors];
  Pack<T, kCount>* const residual_row = reinterpret_cast<Pack<T, kCount>*>(p.residual + row * p.residual_stride);
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = thread + v * kThreads; i < vectors) {
      sum[v] = reinterpret_cast<const Pack<T, kCount>*>(p.x + row * p.x_stride)[i];
      if (p.residual != nullptr) residual[v] = residual_row[i];
    }
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = thread + v * kThreads; i < vectors) {
      float x[kCount];
      widen(sum[v], x);
      if (p.residual != nullptr) {
        float more[kCount];
        widen(residual[v], more);
#pragma unroll
        for (int c = 0; c < kCount; ++c) x[c] += more[c];
        narrow(x, sum[v]);
        widen(sum[v], x);
        residual_row[i] = sum[v];
      }
#pragma unroll
      for (int c = 0; c < kCount; ++c) squares = fmaf(x[c], x[c], squares);
    }
  const float scale = 1.0f / sqrtf(row_sum<kThreads>(squares, shared.partial) / static_cast<float>(p.hidden) + p.eps);
  unsigned largest = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = thread + v * kThreads; i < vectors) {
      if constexpr (!kEarlyWeights) weight[v] = weight_row[i];
      float x[kCount], by[kCount];
      widen(sum[v], x), widen(weight[v], by);
#pragma unroll
      for (int c = 0; c < kCount; ++c) x[c] = x[c] * scale * by[c];
      narrow(x, sum[v]);
      if constexpr (kRounds) largest = largest_magnitude(sum[v], largest);
      if (!kRounds || p.out != nullptr) reinterpret_cast<Pack<T, kCount>*>(p.out + row * p.out_stride)[i] = sum[v];
    }
  if constexpr (kRounds) {
    const float code_scale = row_scale<kThreads>(p, row, thread, largest, shared);
    const E4m3Rounding rounding(code_scale, largest);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (const int i = thread + v * kThreads; i < vectors)
        reinterpret_cast<Pack<uint8_t, kCount>*>(p.codes + row * p.codes_stride)[i] = rounding(sum[v]);
  }
}

// Element by element, for rows that fill no vectors or no registers.
template <RmsNormConfig kConfig, bool kRounds, class T, class W>
__device__ __forceinline__ void rmsnorm_elements(const RmsNormParams<T, W>& p, int64_t row, int thread,
                                                 RmsNormShared& shared) {
  constexpr int kThreads = kConfig.row_threads;
  pdl_launch_next();
  pdl_wait();
  const T* x = p.x + row * p.x_stride;
  T* const residual = p.residual == nullptr ? nullptr : p.residual + row * p.residual_stride;
  float squares = 0;
  for (int i = thread; i < p.hidden; i += kThreads) {
    T sum = x[i];
    if (residual != nullptr) residual[i] = sum = narrow<T>(widen(sum) + widen(residual[i]));
    squares = fmaf(widen(sum), widen(sum), squares);
  }
  const float scale = 1.0f / sqrtf(row_sum<kThreads>(squares, shared.partial) / static_cast<float>(p.hidden) + p.eps);
  // Every thread reads back what it wrote itself.
  const T* from = residual == nullptr ? x : residual;
  T* out = p.out == nullptr ? nullptr : p.out + row * p.out_stride;
  const auto value = [&](int i) { return narrow<T>(widen(from[i]) * scale * widen(p.weight[i])); };
  if constexpr (kRounds) {
    // Before `out`, which may be x.
    unsigned largest = 0;
#pragma unroll 1
    for (int i = thread; i < p.hidden; i += kThreads) largest = max(largest, magnitude(widen(value(i))));
    const float code_scale = row_scale<kThreads>(p, row, thread, largest, shared);
#pragma unroll 1
    for (int i = thread; i < p.hidden; i += kThreads)
      p.codes[row * p.codes_stride + i] = round_e4m3(widen(value(i)), code_scale);
    if (out == nullptr) return;
  }
  for (int i = thread; i < p.hidden; i += kThreads) out[i] = value(i);
}

// kIndex into kRmsNormConfigs: nvcc 13.0 cannot start a kernel with a template parameter of class type.
// kRounds: to E4M3 too.
template <int kIndex, bool kRounds, class T, class W>
__global__ void __launch_bounds__(kRmsNormConfigs[kIndex].row_threads* kRmsNormConfigs[kIndex].block_rows)
    rmsnorm_kernel(RmsNormParams<T, W> p) {
  constexpr RmsNormConfig kConfig = kRmsNormConfigs[kIndex];
  static_assert(kConfig.row_threads % 32 == 0 && kConfig.row_threads * kConfig.block_rows <= 1024);
  static_assert(kConfig.block_rows == 1 || kConfig.row_threads == 32, "rows of one warp may share a block");
  __shared__ RmsNormShared shared;
  const int64_t row = int64_t{blockIdx.x} * kConfig.block_rows + static_cast<int>(threadIdx.x) / kConfig.row_threads;
  if (row >= p.rows) return;  // whole warps: no barrier is missed
  const int thread = static_cast<int>(threadIdx.x) % kConfig.row_threads;
  if constexpr (kConfig.row_vectors == 0) {
    rmsnorm_elements<kConfig, kRounds>(p, row, thread, shared);
  } else {
    rmsnorm_vectors<kConfig, kRounds>(p, row, thread, shared);
  }
}

}  // namespace hearth::sm90
