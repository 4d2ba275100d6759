// SPDX-License-Identifier: Apache-2.0
// non_finite on a GPU: threads stride over the elements; who finds one lowers `first` atomically.
#include "hearth/kernels/non_finite/non_finite.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsOfGrid = 256;

struct NonFiniteParams {
  const float* x;
  unsigned long long* first;
  int64_t stride, rows, cols;
};

// Grid (pieces of a row, strides of rows).
__global__ void __launch_bounds__(kThreads) non_finite_kernel(NonFiniteParams p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= p.cols) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const uint32_t bits = __float_as_uint(p.x[row * p.stride + column]);
    if ((bits & 0x7F800000) != 0x7F800000) continue;
    const uint64_t code =
        static_cast<uint64_t>(row * p.cols + column) << 2 | bits >> 31 << 1 | ((bits & 0x7FFFFF) != 0 ? 1 : 0);
    atomicMin(p.first, static_cast<unsigned long long>(code));
    return;  // what this thread finds later lies after it
  }
}

}  // namespace

Status non_finite_sm90(const NonFiniteArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  if (rows == 0 || cols == 0) return {};
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  const NonFiniteParams params{static_cast<const float*>(args.x.data),
                               static_cast<unsigned long long*>(static_cast<void*>(args.first)), args.x.row_stride,
                               rows, cols};
  Launch how(dim3(static_cast<unsigned>((cols + kThreads - 1) / kThreads),
                  static_cast<unsigned>(rows < kRowsOfGrid ? rows : kRowsOfGrid)),
             dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, non_finite_kernel, params);
}

}  // namespace hearth
