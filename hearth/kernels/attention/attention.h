// SPDX-License-Identifier: Apache-2.0
// Causal grouped-query attention over the paged KV cache; prefill, chunks and decode are one op.
#pragma once

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/shape.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// out[t, h] = softmax(scale * q[t, h] . K) V over the keys j <= p that the token at position p sees, kv
// head h / (heads / kv_heads). With window > 0 only j > p - window.
//   q    [tokens, heads * head_dim] f32 or bf16 (a column slice of qkv is fine), rotated
//   out  [tokens, heads * head_dim] as q
//   k_channel_scale, k_scale, v_scale: as rope_kv_write had them
//   kv, layer, batch: K and V of every position below context_len are already written
// Every key and value, the token's own too, is read back from the pool. Q goes through the layout's query transform
// first, in f32: divided by k_channel_scale (kInt4Fireq), rotated (kInt4Saw).
// Numerics: scores and softmax in f32. A row is a function of its query and of the keys that it sees
// alone, bit for bit: chunked, batched and single runs agree.
// Errors: InvalidArgument for shapes that disagree or a context longer than the block table.
struct AttentionArgs {
  ConstTensorView q;
  TensorView out;
  int64_t heads = 0;
  float scale = 0;
  int64_t window = 0;
  int64_t layer = 0;
  ConstTensorView k_channel_scale;
  ConstTensorView k_scale;
  ConstTensorView v_scale;
  KvView kv;
  const StepBatch* batch = nullptr;
};

Status validate(const AttentionArgs& args);
// Scratch of attention_cpu for steps of up to `max_tokens` tokens and contexts of up to `max_context`.
int64_t attention_cpu_workspace_bytes(int64_t max_tokens, int64_t heads, int64_t head_dim, int64_t max_context,
                                      int threads);
Status attention_ref(const AttentionArgs& args, ExecContext& exec);
Status attention_cpu(const AttentionArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors and KV pool in device memory, the step staged; head dims that are multiples of 8 up to
// 256. Less scratch than this makes few rows slower and changes nothing else.
int64_t attention_sm90_workspace_bytes(int64_t max_tokens, int64_t heads, int64_t head_dim, int64_t max_context,
                                       int threads);
Status attention_sm90(const AttentionArgs& args, ExecContext& exec);

}  // namespace hearth
