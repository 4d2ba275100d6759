// SPDX-License-Identifier: Apache-2.0
// The weights of a model, bound from a checkpoint into one piece of the memory in which its ops want them.
//   I1. Q, K and V of a layer are one linear [(heads + 2 kv_heads) head_dim, hidden], gate and up are one
//       [2 ffn, hidden]: rows one part after the other. Where one of them is quantized, each is a part of its own.
//   I2. Norm weights and biases are f32; plain linear weights keep the checkpoint's values (f32, f16, bf16) or
//       are bf16 where the model computes in bf16; quantized ones are in canonical form (quantized_matrix.h), until
//       Model::pack_weights().
//   I3. Immutable after load: any number of threads may read.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <variant>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/memory/memory.h"
#include "hearth/model/config.h"
#include "hearth/model/weight_source.h"
#include "hearth/model/weights_sink.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

// The part of a weight that a rank holds: heads and ffn channels are split evenly over `size` ranks; the
// embedding, the norms and lm_head are on every rank. `expert` is the place of this weight among the
// experts of a mixture layer.
struct Shard {
  int rank = 0;
  int size = 1;
  std::optional<int64_t> expert;
};

// A linear of the model: parts below each other, each of one format. Plain weights are one part.
struct Linear {
  std::vector<LinearWeight> parts;

  int64_t n() const;
  int64_t k() const { return parts.empty() ? 0 : parts.front().k; }
  // Stored bytes without and with biases.
  int64_t weight_bytes() const;
  int64_t size_bytes() const;
};

// y = down(silu(gate x) * (up x)).
struct DenseFfn {
  Linear gate_up;
  Linear down;
};

// A layer's feed-forward part. Mixtures of experts join here.
using Ffn = std::variant<DenseFfn>;

struct LayerWeights {
  ConstTensorView input_norm;  // [hidden]
  Linear qkv;
  ConstTensorView q_norm, k_norm;  // [head_dim], optional
  // What the KV formats need (rope.h), f32, optional: [kv_heads, head_dim]; [1] or [kv_heads].
  ConstTensorView k_channel_scale, k_scale, v_scale;
  ConstTensorView k_channel_offset;  // as k_channel_scale
  Linear o;
  ConstTensorView post_attention_norm;  // [hidden]
  Ffn ffn;
};

struct ModelWeights {
  ConstTensorView embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  ConstTensorView final_norm;  // [hidden]
  Linear lm_head;              // [vocab, hidden]; the embedding's memory where tied
  ConstTensorView inv_freq;    // [head_dim / 2] f32
  // What all views point into. Whoever owns the model's life may take its pages away and bring them back, as they were,
  // while no step uses it.
  mutable Buffer memory;

  // Bytes that a decode step reads: every linear and norm once; of an untied embedding nothing to speak of.
  int64_t bytes_per_token() const;
};

// Called as bytes arrive, from the loading thread.
using LoadProgress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

struct WeightsOptions {
  DType activation = DType::kF32;  // kBf16 turns f32 and f16 linear weights into bf16; kF32 keeps them
  Shard shard;
  const Memory* memory = &host_memory();  // where they shall lie
  LoadProgress progress;
  const std::atomic<bool>* stop = nullptr;  // once true, the load ends with Cancelled at the next tensor; may be null
  // Bytes from the codes on that the place of a quantized weight has at least (LinearOp::packed_bytes); null: none.
  std::function<int64_t(const WeightFormat& format, int64_t n, int64_t k)> packed_bytes;
  int64_t piece_bytes = WeightSink::kPieceBytes;  // of host memory, twice, on the way to a device
};

// Reads the shard of every weight that the architecture needs, on all threads of the pool. On its way to a device no
// more than two pieces are in host memory, and one quantized matrix a thread, as stored and as computed with, where a
// format's codes must be converted.
// Errors: NotFound for a missing tensor, InvalidArgument for a wrong shape or a shard that does not
// divide the heads, Unsupported for a dtype, Corrupt for a weight that is infinite or not a number, as stored
// or as converted, ResourceExhausted for too little memory.
Result<ModelWeights> load_weights(WeightSource& source, const ModelConfig& config, const WeightsOptions& options,
                                  ThreadPool& pool);

}  // namespace hearth
