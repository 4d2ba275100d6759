// SPDX-License-Identifier: Apache-2.0
// The table of the CUDA backend. `sample` runs on the CPU, for steps whose logits have been copied there.
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/op_table.h"
#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {
namespace {

constexpr LinearOp kLinearBf16{"linear_bf16_sm90", linear_cublaslt_workspace_bytes, linear_bf16_sm90};
constexpr LinearOp kLinearFp8{"linear_fp8_sm90", linear_fp8_sm90_workspace_bytes, linear_fp8_sm90,
                              linear_fp8_sm90_takes_rounded, linear_fp8_sm90_parts};
constexpr LinearOp kLinearNibble{"linear_nibble_sm90",     linear_nibble_sm90_workspace_bytes,
                                 linear_nibble_sm90,       linear_nibble_sm90_takes_rounded,
                                 linear_nibble_sm90_parts, linear_nibble_sm90_packed_bytes,
                                 linear_nibble_sm90_pack};
constexpr LinearOp kLinearLines{
    "linear_lines_sm90",     linear_lines_sm90_workspace_bytes, linear_lines_sm90,     nullptr,
    linear_lines_sm90_parts, linear_lines_sm90_packed_bytes,    linear_lines_sm90_pack};
constexpr LinearOp kLinearSm90{"linear_sm90", linear_sm90_workspace_bytes, linear_sm90};
constexpr LinearOp kLinearQuantizedSm90{"linear_quantized_sm90", linear_quantized_sm90_workspace_bytes,
                                        linear_quantized_sm90};

// The GPU first: without one cuBLASLt says only that it is not initialized.
Status prepare() {
  HEARTH_TRY(check_cuda_device());
  return prepare_cublaslt();
}

Result<std::vector<std::string>> device_names() {
  HEARTH_TRY_ASSIGN(const int count, cuda_device_count());
  std::vector<std::string> names;
  for (int device = 0; device < count; ++device) {
    HEARTH_TRY_ASSIGN(CudaDeviceInfo info, cuda_device_info(device));
    names.push_back(std::move(info.name));
  }
  return names;
}

constexpr OpTable kCudaOps{
    .backend = "cuda",
    .embedding = embedding_sm90,
    .rmsnorm = rmsnorm_sm90,
    .rope_table = rope_table_sm90,
    .rope_kv_write = rope_kv_write_sm90,
    .attention = attention_sm90,
    .attention_workspace_bytes = attention_sm90_workspace_bytes,
    .silu_mul = silu_mul_sm90,
    .rounds_outputs = true,
    .sample = sample_cpu,
    .sample_workspace_bytes = sample_cpu_workspace_bytes,
    .sample_packed = sample_packed_sm90,
    .find_linear = [](const WeightFormat& format, DType activation) -> const LinearOp* {
      if (activation != DType::kF32 && activation != DType::kBf16) return nullptr;
      if (supports_linear_fp8_sm90(format, activation)) return &kLinearFp8;
      if (supports_linear_nibble_sm90(format, activation)) return &kLinearNibble;
      if (supports_linear_lines_sm90(format, activation)) return &kLinearLines;
      if (!format.is_plain()) return supports_linear_quantized(format) ? &kLinearQuantizedSm90 : nullptr;
      return activation == DType::kBf16 && format.code == WeightCode::kBf16 ? &kLinearBf16 : &kLinearSm90;
    },
    .supports_kv = [](KvFormatId) { return true; },
    .second_moments = second_moments_sm90,
    .non_finite = non_finite_sm90,
    .memory = cuda_memory,
    .choose_device = choose_cuda_device,
    .device_names = device_names,
    .prepare = prepare,
};

}  // namespace

const OpTable* cuda_ops() { return &kCudaOps; }

}  // namespace hearth
