// SPDX-License-Identifier: Apache-2.0
// A block rounds one row: it places the row in stored order, finds the largest magnitudes as integers (so that NaN and
// infinities win, and the order does not matter), and divides.
#include "hearth/kernels/linear/activations_sm90.h"

#include <algorithm>

#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kThreads = 256;

int64_t padded(int64_t k) { return (k + 3) / 4 * 4; }

struct RoundParams {
  const void* x;
  const int32_t* order;       // null: in order
  const float* static_scale;  // kE4m3Static
  float* out;
  float* scale;
  int64_t x_stride, out_stride, scale_stride;
  int k, group;  // kI8PerGroup: columns of a scale
  DType x_dtype;
  ActFormat act;
};

__device__ __forceinline__ float to_e4m3(float x, float scale) {
  return widen_e4m3(__nv_cvt_float_to_fp8(__fdiv_rn(x, scale), __NV_SATFINITE, __NV_E4M3));
}

__device__ __forceinline__ float to_int8(float x, float scale) {
  return fminf(fmaxf(rintf(__fdiv_rn(x, scale)), -127.0f), 127.0f);
}

__global__ void __launch_bounds__(kThreads) round_activations_kernel(const __grid_constant__ RoundParams p) {
  __shared__ unsigned row_largest;
  const int64_t row = blockIdx.x;
  float* const out = p.out + row * p.out_stride;
  const auto place = [&](int k) { return p.order == nullptr ? k : p.order[k]; };
  if (threadIdx.x == 0) row_largest = 0;
  pdl_wait();
  unsigned largest = 0;
  for (int k = threadIdx.x; k < p.k; k += kThreads) {
    const float x = number_at(p.x, p.x_dtype, row * p.x_stride + k);
    largest = max(largest, magnitude(x));
    out[place(k)] = p.act == ActFormat::kE4m3Static ? to_e4m3(x, *p.static_scale) : x;
  }
  __syncthreads();  // all threads: the row is in its place, row_largest is 0
  if (p.act == ActFormat::kE4m3PerToken) {
    largest = __reduce_max_sync(0xFFFFFFFF, largest);
    if (threadIdx.x % 32 == 0) atomicMax(&row_largest, largest);
    __syncthreads();  // all threads: every warp has added its own
    const float scale = act_scale_of_bits(row_largest, 448);
    if (threadIdx.x == 0) p.scale[row * p.scale_stride] = scale;
    for (int k = threadIdx.x; k < p.k; k += kThreads) out[k] = isnan(scale) ? 0.0f : to_e4m3(out[k], scale);
  }
  if (p.act == ActFormat::kI8PerGroup) {
    const int lane = threadIdx.x % 32;
    for (int group = threadIdx.x / 32, begin = group * p.group; begin < p.k;
         group += kThreads / 32, begin = group * p.group) {
      const int end = min(p.k, begin + p.group);
      largest = 0;
      for (int k = begin + lane; k < end; k += 32) largest = max(largest, magnitude(out[k]));
      const float scale = act_scale_of_bits(__reduce_max_sync(0xFFFFFFFF, largest), 127);
      if (lane == 0) p.scale[row * p.scale_stride + group] = scale;
      for (int k = begin + lane; k < end; k += 32) out[k] = isnan(scale) ? 0.0f : to_int8(out[k], scale);
    }
  }
  pdl_launch_next();
}

}  // namespace

// Groups are of 8 columns at least where they have scales.
int64_t rounded_activations_bytes(int64_t rows, int64_t k) {
  return rows * (padded(k) + (k + 7) / 8 + 1) * static_cast<int64_t>(sizeof(float));
}

Result<RoundedActivations> round_activations(const LinearArgs& args, int64_t begin, int64_t rows, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  // Rows that come rounded are widened.
  const bool is_rounded = args.x.dtype == DType::kE4m3;
  const ActFormat act = is_rounded ? ActFormat::kNative : w.format.act;
  const ConstTensorView x = args.x.slice_rows(begin, rows);
  if (act == ActFormat::kNative && x.dtype == DType::kF32 && !w.k_order)
    return RoundedActivations{static_cast<const float*>(x.data), nullptr, x.row_stride, 0};

  auto* const scratch = static_cast<float*>(static_cast<void*>(exec.workspace.data()));
  const int64_t group = w.format.group_k > 0 ? std::min(w.format.group_k, w.k) : w.k;
  const RoundParams params{.x = x.data,
                           .order = static_cast<const int32_t*>(w.k_order.data),
                           .static_scale = static_cast<const float*>(w.act_scale.data),
                           .out = scratch,
                           .scale = scratch + rows * padded(w.k),
                           .x_stride = x.row_stride,
                           .out_stride = padded(w.k),
                           .scale_stride = act == ActFormat::kI8PerGroup && group > 0 ? (w.k + group - 1) / group : 1,
                           .k = static_cast<int>(w.k),
                           .group = static_cast<int>(group),
                           .x_dtype = x.dtype,
                           .act = act};
  Launch how(dim3(static_cast<unsigned>(rows)), dim3(kThreads), exec.stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, round_activations_kernel, params));
  RoundedActivations rounded{params.out, nullptr, params.out_stride, 0};
  if (is_rounded) rounded.scale = static_cast<const float*>(args.x_scale.data) + begin, rounded.scale_stride = 1;
  if (act == ActFormat::kE4m3Static) rounded.scale = params.static_scale;
  if (act == ActFormat::kE4m3PerToken || act == ActFormat::kI8PerGroup)
    rounded.scale = params.scale, rounded.scale_stride = params.scale_stride;
  return rounded;
}

}  // namespace hearth::sm90
