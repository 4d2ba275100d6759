// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes round a group, 8 neighbouring columns each.
#include "hearth/kernels/linear/round_groups_sm90.h"

#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/kernels/sm90/int8.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kThreads = 256, kGroupThreads = 16;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t scale_stride_of(int64_t m) { return (m + 3) / 4 * 4; }

struct RoundGroupsParams {
  const __nv_bfloat16* x;
  uint8_t* out;  // [m, groups * 128]
  float* scale;  // [groups][scale_stride]
  int64_t x_stride, scale_stride;
  int m, groups;  // of a row
};

__global__ void __launch_bounds__(kThreads) round_groups_kernel(const __grid_constant__ RoundGroupsParams p) {
  pdl_launch_next();
  const int thread = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int lane = thread % kGroupThreads, all = p.m * p.groups;
  const int at = min(thread / kGroupThreads, all - 1);  // the last block's last lanes: nothing of their own
  const int token = at / p.groups, group = at - token * p.groups;
  const auto* const from = reinterpret_cast<const uint4*>(p.x + token * p.x_stride + group * kUnitColumns) + lane;
  pdl_wait();
  const uint4 pairs = __ldcg(from);
  const uint32_t of_pairs = __vmaxu2(__vmaxu2(pairs.x & 0x7FFF7FFFu, pairs.y & 0x7FFF7FFFu),
                                     __vmaxu2(pairs.z & 0x7FFF7FFFu, pairs.w & 0x7FFF7FFFu));
  unsigned largest = max(of_pairs << 16, of_pairs & 0xFFFF0000u);
#pragma unroll
  for (int step = 1; step < kGroupThreads; step *= 2)
    largest = max(largest, __shfl_xor_sync(0xFFFFFFFF, largest, step));
  const float scale = int8_scale_of(largest);
  const Int8Rounding rounding(scale, largest);
  if (thread / kGroupThreads >= all) return;
  reinterpret_cast<uint2*>(p.out)[int64_t{at} * kGroupThreads + lane] = {rounding(pairs.x, pairs.y),
                                                                         rounding(pairs.z, pairs.w)};
  if (lane == 0) p.scale[group * p.scale_stride + token] = scale;
}

}  // namespace

bool can_round_groups(const ConstTensorView& x) {
  return x.dtype == DType::kBf16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.cols() % kUnitColumns == 0 &&
         (x.rows() == 1 || x.row_stride % 8 == 0);
}

int64_t round_groups_bytes(int64_t m, int64_t k) {
  return align256(m * k) + align256(k / kUnitColumns * scale_stride_of(m) * 4);
}

Result<RowsI8> round_groups(const ConstTensorView& x, std::byte* scratch, void* stream) {
  const int64_t m = x.rows(), k = x.cols();
  const RoundGroupsParams params{.x = static_cast<const __nv_bfloat16*>(x.data),
                                 .out = reinterpret_cast<uint8_t*>(scratch),
                                 .scale = reinterpret_cast<float*>(scratch + align256(m * k)),
                                 .x_stride = x.row_stride,
                                 .scale_stride = scale_stride_of(m),
                                 .m = static_cast<int>(m),
                                 .groups = static_cast<int>(k / kUnitColumns)};
  const int64_t threads = m * params.groups * kGroupThreads;
  Launch how(dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, round_groups_kernel, params));
  return RowsI8{ConstTensorView(scratch, DType::kI8, Shape{m, k}), params.scale, params.scale_stride};
}

}  // namespace hearth::sm90
