// SPDX-License-Identifier: Apache-2.0
// A block arranges a row, 8 neighbouring columns a thread: a word of the codes that they are multiplied with.
#include "hearth/kernels/linear/arrange_rows_sm90.h"

#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;

struct ArrangeParams {
  const void* x;
  const float* static_scale;
  void* out;
  float* scale;
  int64_t x_stride;
  int k;
};

// The 8 numbers of columns k to k + 7 of a row at `row`.
template <FragmentOrder kOrder>
__device__ __forceinline__ void place_e4m3(uint8_t* row, int k, uint2 codes) {
  static_assert(kOrder != FragmentOrder::kHalves);
  if constexpr (kOrder == FragmentOrder::kParity)
    codes = make_uint2(__byte_perm(codes.x, codes.y, 0x6420), __byte_perm(codes.x, codes.y, 0x7531));
  uint8_t* const to = row + k / kFragmentGroup * kFragmentGroup;
  const int first = fragment_slot(kOrder, k % kFragmentGroup);
  *reinterpret_cast<uint32_t*>(to + first) = codes.x;
  *reinterpret_cast<uint32_t*>(to + first + 16) = codes.y;
}

__device__ __forceinline__ void place_bf16(__nv_bfloat16* row, int k, const Pack<__nv_bfloat16, kVector>& numbers) {
  __nv_bfloat16* const to = row + k / kFragmentGroup * kFragmentGroup;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<__nv_bfloat162*>(to + fragment_slot(FragmentOrder::kHalves, k % kFragmentGroup + i)) =
        __nv_bfloat162(numbers.at[i], numbers.at[i + 4]);
}

template <FragmentOrder kOrder, bool kIsRounded>
__global__ void __launch_bounds__(kThreads) arrange_rows_kernel(const __grid_constant__ ArrangeParams p) {
  __shared__ unsigned warp_largest[kThreads / 32];
  using Numbers = Pack<__nv_bfloat16, kVector>;
  pdl_launch_next();
  pdl_wait();
  const int64_t from = blockIdx.x * p.x_stride, to = int64_t{blockIdx.x} * p.k;
  const int first = threadIdx.x * kVector;
  constexpr int kStep = kThreads * kVector;
  if constexpr (kIsRounded) {
    const uint8_t* const x = static_cast<const uint8_t*>(p.x) + from;
    for (int k = first; k < p.k; k += kStep)
      place_e4m3<kOrder>(static_cast<uint8_t*>(p.out) + to, k, *reinterpret_cast<const uint2*>(x + k));
  } else {
    const auto* const x = static_cast<const __nv_bfloat16*>(p.x) + from;
    if constexpr (kOrder == FragmentOrder::kHalves) {
      for (int k = first; k < p.k; k += kStep)
        place_bf16(static_cast<__nv_bfloat16*>(p.out) + to, k, *reinterpret_cast<const Numbers*>(x + k));
    } else {
      float scale = 0;
      if (p.static_scale != nullptr) {
        scale = *p.static_scale;
      } else {
        unsigned largest = 0;
        for (int k = first; k < p.k; k += kStep)
          largest = largest_magnitude(*reinterpret_cast<const Numbers*>(x + k), largest);
        scale = e4m3_scale_of(block_largest<kThreads / 32>(largest, warp_largest));
      }
      if (threadIdx.x == 0) p.scale[blockIdx.x] = scale;
      for (int k = first; k < p.k; k += kStep) {
        const Pack<uint8_t, kVector> codes = round_e4m3(*reinterpret_cast<const Numbers*>(x + k), scale);
        place_e4m3<kOrder>(static_cast<uint8_t*>(p.out) + to, k, *reinterpret_cast<const uint2*>(&codes));
      }
    }
  }
}

using Kernel = void (*)(ArrangeParams);
Kernel kernel_of(FragmentOrder order, bool is_rounded) {
  switch (order) {
    case FragmentOrder::kRuns:
      return is_rounded ? arrange_rows_kernel<FragmentOrder::kRuns, true>
                        : arrange_rows_kernel<FragmentOrder::kRuns, false>;
    case FragmentOrder::kParity:
      return is_rounded ? arrange_rows_kernel<FragmentOrder::kParity, true>
                        : arrange_rows_kernel<FragmentOrder::kParity, false>;
    default: return arrange_rows_kernel<FragmentOrder::kHalves, false>;
  }
}

}  // namespace

Status arrange_rows(const ArrangeRows& rows, void* stream) {
  const ArrangeParams params{.x = rows.x.data,
                             .static_scale = rows.static_scale,
                             .out = rows.out,
                             .scale = rows.scale,
                             .x_stride = rows.x.row_stride,
                             .k = static_cast<int>(rows.x.cols())};
  Launch how(dim3(static_cast<unsigned>(rows.x.rows())), dim3(kThreads), stream);
  how.pdl = true;
  return launch(how, kernel_of(rows.order, rows.x.dtype == DType::kE4m3), params);
}

}  // namespace hearth::sm90
