// SPDX-License-Identifier: Apache-2.0
// silu_mul on Hopper: a thread per element, in f32. Rows of any alignment.
#include "hearth/kernels/silu_mul/silu_mul.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;

template <class T>
struct SiluMulParams {
  const T* gate_up;
  T* out;
  int64_t gate_up_stride, out_stride, ffn;
};

// Grid (pieces of a row, rows).
template <class T>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulParams<T> p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.ffn) return;
  const T* const gate = p.gate_up + blockIdx.y * p.gate_up_stride;
  const float g = sm90::widen(gate[i]), up = sm90::widen(gate[p.ffn + i]);
  p.out[blockIdx.y * p.out_stride + i] = sm90::narrow<T>(g / (1.0f + expf(-g)) * up);
}

template <class T>
Status start(const SiluMulArgs& args, ExecContext& exec) {
  constexpr int64_t kMostRows = 65535;  // of a grid's second dimension
  const int64_t rows = args.out.rows(), ffn = args.out.cols();
  for (int64_t row = 0; row < rows; row += kMostRows) {
    const SiluMulParams<T> params{static_cast<const T*>(args.gate_up.data) + row * args.gate_up.row_stride,
                                  static_cast<T*>(args.out.data) + row * args.out.row_stride, args.gate_up.row_stride,
                                  args.out.row_stride, ffn};
    const dim3 grid(static_cast<unsigned>((ffn + kThreads - 1) / kThreads),
                    static_cast<unsigned>(rows - row < kMostRows ? rows - row : kMostRows));
    Launch how(grid, dim3(kThreads), exec.stream);
    how.pdl = true;
    HEARTH_TRY(launch(how, silu_mul_kernel<T>, params));
  }
  return {};
}

}  // namespace

Status silu_mul_sm90(const SiluMulArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.out.rows() == 0) return {};
  return args.out.dtype == DType::kF32 ? start<float>(args, exec) : start<__nv_bfloat16>(args, exec);
}

}  // namespace hearth
