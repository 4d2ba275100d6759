// SPDX-License-Identifier: Apache-2.0
// The one way to start a kernel: reports the launch's own error, with the line of the caller. Never
// synchronises; can be captured in a graph. Any thread, for its own stream.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "hearth/memory/cuda/cuda_status.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {

struct Launch {
  dim3 grid, block;
  cudaStream_t stream;
  int shared_bytes = 0;
  // Programmatic dependent launch: the kernel may start while the one before it in the stream ends, and
  // must not touch what that one reads or writes before its pdl_wait() (kernels/sm90/pdl.cuh).
  bool pdl = false;
  unsigned cluster = 1;  // neighbouring blocks that run at the same time; divides the grid
  SourceLoc where;

  Launch(dim3 g, dim3 b, void* s, SourceLoc loc = SourceLoc::current())
      : grid(g), block(b), stream(static_cast<cudaStream_t>(s)), where(loc) {}
};

template <class... Params, class... Args>
Status launch(const Launch& how, void (*kernel)(Params...), Args&&... args) {
  HEARTH_TRY(enter_cuda_device());
  cudaLaunchAttribute attributes[3] = {};
  unsigned count = 0;
  if (how.pdl) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    // The same split of L1 for all: a multiprocessor changes it only when it is empty, so kernels that ask for
    // different ones do not run beside each other.
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  if (how.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = how.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  if (error != cudaSuccess) return cuda_error(error, "kernel launch", how.where);
  return {};
}

}  // namespace hearth
