// SPDX-License-Identifier: Apache-2.0
// The driver's encoder of tensor maps, found through the runtime.
#include "hearth/kernels/sm90/tensor_map.cuh"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "hearth/memory/cuda/cuda_status.h"
#include "hearth/memory/cuda/device.h"

namespace hearth::sm90 {
namespace {

Result<PFN_cuTensorMapEncodeTiled_v12000> find_encoder() {
  static PFN_cuTensorMapEncodeTiled_v12000 found = nullptr;  // the same pointer, whoever writes it
  if (found != nullptr) return found;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult answer{};
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &answer));
  if (answer != cudaDriverEntryPointSuccess || function == nullptr)
    return unavailable("the CUDA driver has no cuTensorMapEncodeTiled, wanted one for CUDA 12.0 or newer");
  return found = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

Result<CUtensorMap> encode_tensor_map(const void* base, int element_bytes, const TensorMapShape& shape) {
  HEARTH_TRY_ASSIGN(const auto encode, find_encoder());
  CUtensorMap map;
  const cuuint32_t ones[] = {1, 1, 1};
  const CUresult status = encode(&map,
                                 element_bytes == 8   ? CU_TENSOR_MAP_DATA_TYPE_UINT64
                                 : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                 static_cast<cuuint32_t>(shape.rank), const_cast<void*>(base), shape.size,
                                 shape.stride_bytes + 1, shape.box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 shape.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    return make_error(
        ErrorCode::kInternal,
        "tensor map: the driver refuses it with code {}: base {}, size {} x {} x {}, strides {} and {} bytes",
        static_cast<int>(status), base, shape.size[0], shape.size[1], shape.size[2], shape.stride_bytes[1],
        shape.stride_bytes[2]);
  return map;
}

}  // namespace hearth::sm90
