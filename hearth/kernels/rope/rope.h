// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding (Su et al., 2021) in the rotate-half layout of Hugging Face checkpoints: the
// pairs are channels (i, i + head_dim / 2). The second op also stores K and V in the paged cache.
#pragma once

#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/shape.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// cos_sin[t, i] = scale * cos(position[t] * inv_freq[i]), cos_sin[t, head_dim / 2 + i] the sine. Computed
// once per step, read by every layer.
//   positions [tokens] i32;  inv_freq [head_dim / 2] f32;  cos_sin [tokens, head_dim] f32
// Numerics: the angle is the f32 product, as the models were trained with; its cosine is exact to f32.
struct RopeTableArgs {
  std::span<const int32_t> positions;
  ConstTensorView inv_freq;
  float scale = 1.0f;
  TensorView cos_sin;
};

// For every token: normalises each head of Q and K (where q_norm and k_norm are given), rotates them, and
// writes K and V of `layer` to the cache at the token's position.
//   qkv     [tokens, (heads + 2 kv_heads) * head_dim] f32 or bf16; Q is rewritten in place, K and V are not
//   cos_sin [tokens, head_dim] f32 from RopeTableArgs
//   q_norm, k_norm [head_dim] f32 or bf16, optional (Qwen3): RMSNorm per head before the rotation
//   k_channel_offset, k_channel_scale [kv_heads, head_dim] f32, optional, kInt4Fireq alone: K after the rotation is
//           stored less the offset, times the scale. Attention divides Q by the scale and needs no offset: one vector
//           taken from all keys moves all scores of a query alike, which softmax does not see
//   k_scale, v_scale [1] or [kv_heads] f32, optional, kFp8 alone: what a stored 1 stands for; 1 where empty
//   kv      the pool; batch->block_table must hold a block for every position written
// Numerics: f32 throughout, one rounding to the type stored, by kv_codec.h. kInt4Saw's K is rotated by hadamard.h.
// Scales that the pool's format does not use are not looked at. REQUIRES: scales are finite and not 0.
// Errors: InvalidArgument for shapes that disagree or a position outside the block table.
struct RopeKvWriteArgs {
  TensorView qkv;
  ConstTensorView cos_sin;
  ConstTensorView q_norm;
  ConstTensorView k_norm;
  float norm_eps = 1e-6f;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t layer = 0;
  ConstTensorView k_channel_scale;
  ConstTensorView k_scale;
  ConstTensorView v_scale;
  ConstTensorView k_channel_offset;
  KvView kv;
  const StepBatch* batch = nullptr;
};

Status validate(const RopeTableArgs& args);
Status validate(const RopeKvWriteArgs& args);
Status rope_table_ref(const RopeTableArgs& args, ExecContext& exec);
Status rope_table_cpu(const RopeTableArgs& args, ExecContext& exec);
Status rope_kv_write_ref(const RopeKvWriteArgs& args, ExecContext& exec);
Status rope_kv_write_cpu(const RopeKvWriteArgs& args, ExecContext& exec);
// Builds with CUDA only. Tensors and KV pool in device memory, the step staged; head dims to 256.
Status rope_table_sm90(const RopeTableArgs& args, ExecContext& exec);
Status rope_kv_write_sm90(const RopeKvWriteArgs& args, ExecContext& exec);

}  // namespace hearth
