// SPDX-License-Identifier: Apache-2.0
// The table from CUDA runtime errors to ours (cuda_status.h).
#include "hearth/memory/cuda/cuda_status.h"

#include <cuda_runtime_api.h>

namespace hearth {
namespace {

ErrorCode code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return ErrorCode::kResourceExhausted;
    // The process has no GPU to work with, but is sound.
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemNotReady:
    case cudaErrorStubLibrary:
    case cudaErrorInitializationError:
    case cudaErrorOperatingSystem: return ErrorCode::kUnavailable;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion: return ErrorCode::kUnsupported;
    // Sticky: every later call of the process fails the same way.
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak: return ErrorCode::kDeviceLost;
    default: return ErrorCode::kInternal;
  }
}

}  // namespace

Error cuda_error(int code, const char* what, SourceLoc where) {
  const auto error = static_cast<cudaError_t>(code);
  static_cast<void>(cudaGetLastError());
  return {code_of(error), fmt::format("{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error)), where};
}

}  // namespace hearth
