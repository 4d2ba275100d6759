// SPDX-License-Identifier: Apache-2.0
// The op table: the only way from a model to a kernel. A backend has one; a model looks at it when it
// loads, and an op that is missing fails the load, never a step.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/embedding/embedding.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/non_finite/non_finite.h"
#include "hearth/kernels/rmsnorm/rmsnorm.h"
#include "hearth/kernels/rope/rope.h"
#include "hearth/kernels/sample/device_sampler.h"
#include "hearth/kernels/second_moments/second_moments.h"
#include "hearth/kernels/silu_mul/silu_mul.h"
#include "hearth/memory/memory.h"

namespace hearth {

struct OpTable {
  std::string_view backend;
  Status (*embedding)(const EmbeddingArgs&, ExecContext&) = nullptr;
  Status (*rmsnorm)(const RmsNormArgs&, ExecContext&) = nullptr;
  Status (*rope_table)(const RopeTableArgs&, ExecContext&) = nullptr;
  Status (*rope_kv_write)(const RopeKvWriteArgs&, ExecContext&) = nullptr;
  Status (*attention)(const AttentionArgs&, ExecContext&) = nullptr;
  int64_t (*attention_workspace_bytes)(int64_t max_tokens, int64_t heads, int64_t head_dim, int64_t max_context,
                                       int threads) = nullptr;
  Status (*silu_mul)(const SiluMulArgs&, ExecContext&) = nullptr;
  // rmsnorm and silu_mul write RoundedRows for linears that take them (LinearOp::takes_rounded).
  bool rounds_outputs = false;
  Status (*sample)(const SampleArgs&, ExecContext&) = nullptr;
  int64_t (*sample_workspace_bytes)(int64_t vocab, int threads) = nullptr;
  // Samples where the logits lie (DeviceSampler); null where `sample` does.
  SamplePackedOp sample_packed = nullptr;
  // The op for a weight format and activation type; nullptr where the backend has none.
  const LinearOp* (*find_linear)(const WeightFormat& format, DType activation) = nullptr;
  bool (*supports_kv)(KvFormatId format) = nullptr;
  // What the quantizer looks at activations with.
  Status (*second_moments)(const SecondMomentsArgs&, ExecContext&) = nullptr;
  Status (*non_finite)(const NonFiniteArgs&, ExecContext&) = nullptr;
  // Where weights, KV pool and activations lie. `sample` reads logits in host memory, whatever this says.
  const Memory& (*memory)() = host_memory;
  // Chooses one of several devices for the whole process, before it has done anything else (choose_cuda_device()); and
  // the names of all, in the order of their numbers. Both null where there is nothing to choose.
  Status (*choose_device)(int device) = nullptr;
  Result<std::vector<std::string>> (*device_names)() = nullptr;
  // Gets ready what the ops need beyond memory (a library, a handle); a model's load fails with its error. Optional.
  Status (*prepare)() = nullptr;
};

// Highway kernels, chosen at run time for the instruction set.
const OpTable& cpu_ops();
// The obvious loops that accumulate in double: what every other backend is tested against.
const OpTable& ref_ops();
// Kernels for Hopper, and cuBLASLt; null in builds without CUDA. There need not be a GPU: then loading a model fails.
const OpTable* cuda_ops();

}  // namespace hearth
