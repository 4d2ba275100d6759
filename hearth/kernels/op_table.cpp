// SPDX-License-Identifier: Apache-2.0
#include "hearth/kernels/op_table.h"

namespace hearth {
namespace {

constexpr LinearOp kLinearCpu{"linear_cpu", linear_cpu_workspace_bytes, linear_cpu};
constexpr LinearOp kLinearRef{"linear_ref", [](int64_t, int64_t, int64_t, int) -> int64_t { return 0; }, linear_ref};

constexpr LinearOp kLinearQuantizedCpu{"linear_quantized_cpu", linear_quantized_cpu_workspace_bytes,
                                       linear_quantized_cpu};
constexpr LinearOp kLinearQuantizedRef{"linear_quantized_ref", linear_quantized_ref_workspace_bytes,
                                       linear_quantized_ref, linear_quantized_ref_takes_rounded};

// The one of two ops that the format wants, or none.
const LinearOp* choose_linear(const WeightFormat& format, DType activation, const LinearOp& plain,
                              const LinearOp& quantized) {
  if (activation != DType::kF32 && activation != DType::kBf16) return nullptr;
  if (format.is_plain()) return &plain;
  return supports_linear_quantized(format) ? &quantized : nullptr;
}

// The CPU and the reference store and read all of them.
bool any_kv(KvFormatId) { return true; }

constexpr OpTable kCpuOps{
    .backend = "cpu",
    .embedding = embedding_cpu,
    .rmsnorm = rmsnorm_cpu,
    .rope_table = rope_table_cpu,
    .rope_kv_write = rope_kv_write_cpu,
    .attention = attention_cpu,
    .attention_workspace_bytes = attention_cpu_workspace_bytes,
    .silu_mul = silu_mul_cpu,
    .sample = sample_cpu,
    .sample_workspace_bytes = sample_cpu_workspace_bytes,
    .find_linear = [](const WeightFormat& format, DType activation) -> const LinearOp* {
      return choose_linear(format, activation, kLinearCpu, kLinearQuantizedCpu);
    },
    .supports_kv = any_kv,
    .second_moments = second_moments_cpu,
    .non_finite = non_finite_cpu,
};

constexpr OpTable kRefOps{
    .backend = "ref",
    .embedding = embedding_ref,
    .rmsnorm = rmsnorm_ref,
    .rope_table = rope_table_ref,
    .rope_kv_write = rope_kv_write_ref,
    .attention = attention_ref,
    .attention_workspace_bytes = [](int64_t, int64_t, int64_t, int64_t, int) -> int64_t { return 0; },
    .silu_mul = silu_mul_ref,
    .rounds_outputs = true,
    .sample = sample_ref,
    .sample_workspace_bytes = [](int64_t, int) -> int64_t { return 0; },
    .find_linear = [](const WeightFormat& format, DType activation) -> const LinearOp* {
      return choose_linear(format, activation, kLinearRef, kLinearQuantizedRef);
    },
    .supports_kv = any_kv,
    .second_moments = second_moments_ref,
    .non_finite = non_finite_ref,
};

}  // namespace

const OpTable& cpu_ops() { return kCpuOps; }
const OpTable& ref_ops() { return kRefOps; }

}  // namespace hearth
