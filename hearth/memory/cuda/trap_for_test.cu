// SPDX-License-Identifier: Apache-2.0
// A kernel that traps: a sticky error, which only the end of the process clears.
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"
#include "hearth/memory/cuda/trap_for_test.h"

namespace hearth {
namespace {

__global__ void trap_kernel() { __trap(); }

}  // namespace

Status lose_cuda_device_for_test() {
  HEARTH_TRY_ASSIGN(const Stream stream, Stream::create());
  HEARTH_TRY(launch(Launch(dim3(1), dim3(1), stream.handle()), trap_kernel));
  return stream.synchronize();
}

}  // namespace hearth
