// SPDX-License-Identifier: Apache-2.0
// Token embedding: rows of a table.
#pragma once

#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/shape.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// out[t] = table[tokens[t]]
//   tokens [T] ids, or names of `sampled`;  table [vocab, hidden] f32, f16 or bf16;  out [T, hidden] f32 or bf16
// Errors: InvalidArgument for an id outside the table or shapes that disagree.
struct EmbeddingArgs {
  std::span<const int32_t> tokens;
  ConstTensorView table;
  TensorView out;
  SampledIds sampled;
};

Status validate(const EmbeddingArgs& args);
Status embedding_ref(const EmbeddingArgs& args, ExecContext& exec);
Status embedding_cpu(const EmbeddingArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors in device memory, tokens staged; runs in exec.stream.
Status embedding_sm90(const EmbeddingArgs& args, ExecContext& exec);

}  // namespace hearth
