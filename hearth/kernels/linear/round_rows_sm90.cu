// SPDX-License-Identifier: Apache-2.0
// A block rounds a row, 8 neighbouring columns a thread: the bits of quantize_act().
#include "hearth/kernels/linear/round_rows_sm90.h"

#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

struct RoundRowsParams {
  const __nv_bfloat16* x;
  const float* static_scale;  // kE4m3Static, or null
  uint8_t* out;               // [m, k]
  float* scale;               // [m]
  int64_t x_stride;
  int k;
};

__global__ void __launch_bounds__(kThreads) round_rows_kernel(const __grid_constant__ RoundRowsParams p) {
  __shared__ unsigned warp_largest[kThreads / 32];
  using Numbers = Pack<__nv_bfloat16, kVector>;
  pdl_launch_next();
  pdl_wait();
  const __nv_bfloat16* const x = p.x + blockIdx.x * p.x_stride;
  float scale = 0;
  if (p.static_scale != nullptr) {
    scale = *p.static_scale;
  } else {
    unsigned largest = 0;
    for (int k = threadIdx.x * kVector; k < p.k; k += kThreads * kVector)
      largest = largest_magnitude(*reinterpret_cast<const Numbers*>(x + k), largest);
    scale = e4m3_scale_of(block_largest<kThreads / 32>(largest, warp_largest));
  }
  if (threadIdx.x == 0) p.scale[blockIdx.x] = scale;
  for (int k = threadIdx.x * kVector; k < p.k; k += kThreads * kVector) {
    const Numbers numbers = *reinterpret_cast<const Numbers*>(x + k);
    *reinterpret_cast<Pack<uint8_t, kVector>*>(p.out + int64_t{blockIdx.x} * p.k + k) = round_e4m3(numbers, scale);
  }
}

}  // namespace

bool can_round_rows(const ConstTensorView& x) {
  return x.dtype == DType::kBf16 && x.cols() % 16 == 0 && x.row_stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

int64_t round_rows_bytes(int64_t m, int64_t k) { return align256(m * k) + align256(m * 4); }

Result<RowsE4m3> round_rows(const ConstTensorView& x, const LinearWeight& weight, std::byte* scratch, void* stream) {
  const int64_t m = x.rows(), k = x.cols();
  const RoundRowsParams params{.x = static_cast<const __nv_bfloat16*>(x.data),
                               .static_scale = static_cast<const float*>(weight.act_scale.data),
                               .out = reinterpret_cast<uint8_t*>(scratch),
                               .scale = reinterpret_cast<float*>(scratch + align256(m * k)),
                               .x_stride = x.row_stride,
                               .k = static_cast<int>(k)};
  Launch how(dim3(static_cast<unsigned>(m)), dim3(kThreads), stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, round_rows_kernel, params));
  return RowsE4m3{ConstTensorView(scratch, DType::kE4m3, Shape{m, k}), params.scale};
}

}  // namespace hearth::sm90
