// SPDX-License-Identifier: Apache-2.0
// Eight lanes round a group, 16 columns each: those that become one vector of what a lane multiplies.
#include "hearth/kernels/linear/arrange_groups_sm90.h"

#include "hearth/kernels/linear/linear_lines_sm90.cuh"
#include "hearth/kernels/sm90/int8.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kThreads = 128, kGroupThreads = 8;

struct ArrangeParams {
  const __nv_bfloat16* x;
  int64_t x_stride;
  int m, unit_columns;
  std::byte* to;
};

__global__ void __launch_bounds__(kThreads) arrange_groups_kernel(const __grid_constant__ ArrangeParams p) {
  pdl_launch_next();
  const int thread = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int groups = p.m * p.unit_columns, lane = thread % kGroupThreads, half = lane / 4, q = lane % 4;
  const int group = min(thread / kGroupThreads, groups - 1);  // the last block's last lanes: nothing of their own
  const int token = group / p.unit_columns, unit = group - token * p.unit_columns;
  const auto* const from =
      reinterpret_cast<const uint2*>(p.x + token * p.x_stride + unit * kUnitColumns) + half * 16 + q;
  pdl_wait();
  uint2 pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = __ldcg(from + 4 * i);
  uint32_t of_pairs = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    of_pairs = __vmaxu2(of_pairs, __vmaxu2(pairs[i].x & 0x7FFF7FFFu, pairs[i].y & 0x7FFF7FFFu));
  unsigned largest = max(of_pairs << 16, of_pairs & 0xFFFF0000u);
#pragma unroll
  for (int step = 1; step < kGroupThreads; step *= 2)
    largest = max(largest, __shfl_xor_sync(0xFFFFFFFF, largest, step));
  const float scale = int8_scale_of(largest);
  const Int8Rounding rounding(scale, largest);
  uint32_t codes[4];  // columns 4 q.. of the half's quarters
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = rounding(pairs[i].x, pairs[i].y);
  const int tokens = arranged_tokens(p.m);
  auto* const scales = reinterpret_cast<float*>(p.to + groups * kUnitColumns);
  if (thread < p.unit_columns * tokens && thread % tokens >= p.m) scales[thread] = 0;  // tokens that do not exist
  if (thread / kGroupThreads >= groups) return;
  reinterpret_cast<uint4*>(p.to)[((unit * 2 + half) * p.m + token) * 4 + q] = {codes[0], codes[2], codes[1], codes[3]};
  if (lane == 0) scales[unit * tokens + token] = scale;
}

}  // namespace

bool can_arrange_groups(const ConstTensorView& x) {
  return x.dtype == DType::kBf16 && reinterpret_cast<uintptr_t>(x.data) % 8 == 0 && x.cols() % kUnitColumns == 0 &&
         (x.rows() == 1 || x.row_stride % 4 == 0);
}

Status arrange_groups(const ConstTensorView& x, std::byte* to, void* stream) {
  const ArrangeParams params{.x = static_cast<const __nv_bfloat16*>(x.data),
                             .x_stride = x.row_stride,
                             .m = static_cast<int>(x.rows()),
                             .unit_columns = static_cast<int>(x.cols() / kUnitColumns),
                             .to = to};
  const int threads = params.m * params.unit_columns * kGroupThreads;
  Launch how(dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), stream);
  how.pdl = true;
  return launch(how, arrange_groups_kernel, params);
}

}  // namespace hearth::sm90
