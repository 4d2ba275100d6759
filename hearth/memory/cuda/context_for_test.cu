// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/cuda/context_for_test.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "hearth/memory/cuda/cuda_status.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {

Result<bool> has_cuda_context_for_test(int device) {
  HEARTH_TRY(enter_cuda_device());
  void* found = nullptr;
  cudaDriverEntryPointQueryResult answer{};
  HEARTH_CUDA_TRY(
      cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found, 7000, cudaEnableDefault, &answer));
  if (answer != cudaDriverEntryPointSuccess || found == nullptr)
    return unavailable("the CUDA driver has no cuDevicePrimaryCtxGetState");
  unsigned flags = 0;
  int active = 0;
  HEARTH_CUDA_TRY(reinterpret_cast<PFN_cuDevicePrimaryCtxGetState_v7000>(found)(device, &flags, &active));
  return active != 0;
}

}  // namespace hearth
