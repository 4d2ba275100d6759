// SPDX-License-Identifier: Apache-2.0
// One transformer block on the tokens of a step, op by op through a backend's table. forward() runs all of a model's;
// the quantizer runs one at a time, on weights that it is changing, and listens to what each linear is given.
#pragma once

#include <optional>
#include <vector>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"
#include "hearth/comm/comm.h"
#include "hearth/kernels/op_table.h"
#include "hearth/model/config.h"
#include "hearth/model/weights.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// The op of each part of a linear.
using LinearOps = std::vector<const LinearOp*>;

// The ops of a block's linears, looked up once.
struct BlockOps {
  LinearOps qkv, o, gate_up, down;
  // How the op in front of the linear (a norm, silu_mul) rounds its output for it (rounded_rows.h); kNative: not at
  // all, the linear rounds what it reads.
  ActFormat qkv_input = ActFormat::kNative, gate_up_input = ActFormat::kNative, down_input = ActFormat::kNative;

  // Unsupported names the linear ("layer 3 qkv_proj") and the format without an op.
  static Result<BlockOps> find(const OpTable& ops, const LayerWeights& layer, DType activation, int64_t index);
  // Scratch that the linears need for up to `rows` rows.
  int64_t workspace_bytes(const LayerWeights& layer, int64_t rows, int threads) const;
};

Result<LinearOps> find_linear_ops(const OpTable& ops, const Linear& linear, DType activation, std::string_view name);
int64_t workspace_bytes(const Linear& linear, const LinearOps& ops, int64_t rows, int threads);
// What the op in front of a linear may do for all of its parts: where the backend rounds outputs, all parts take them
// and want the same. kNative otherwise.
ActFormat rounded_input(const OpTable& ops, const Linear& linear, const LinearOps& found);

// x of a linear: [rows, k] values, or codes with the scales of their rows (LinearArgs).
struct LinearInput {
  ConstTensorView x, x_scale;

  LinearInput(ConstTensorView values) : x(values) {}                                      // NOLINT: implicit by design
  LinearInput(TensorView values) : x(values) {}                                           // NOLINT: implicit by design
  LinearInput(const RoundedRows& rounded) : x(rounded.codes), x_scale(rounded.scales) {}  // NOLINT: the same
};
// out = residual + x W^T + bias, every part into its columns.
Status run_linear(const Linear& linear, const LinearOps& ops, const LinearInput& x, ConstTensorView residual,
                  TensorView out, ExecContext& exec);

// What a block computes, in this order.
enum class BlockPoint : uint8_t {
  kQkvInput,     // [tokens, hidden] the input of Q, K and V
  kQkv,          // [tokens, (heads + 2 kv_heads) head_dim] their output, before RoPE
  kOInput,       // [tokens, heads head_dim]
  kGateUpInput,  // [tokens, hidden]
  kDownInput,    // [tokens, ffn]
};
using BlockObserver = FunctionRef<Status(BlockPoint point, ConstTensorView values)>;

// Memory for a block's values, each for at least the step's tokens, in the activation type (cos_sin f32), 64-byte
// aligned. Where `normed` and `ffn` go to a linear rounded, their codes and scales lie there instead.
struct BlockBuffers {
  void* hidden = nullptr;     // [tokens, hidden] the residual stream, in and out
  void* normed = nullptr;     // [tokens, hidden]
  void* qkv = nullptr;        // [tokens, (heads + 2 kv_heads) head_dim]
  void* attention = nullptr;  // [tokens, heads head_dim]
  void* gate_up = nullptr;    // [tokens, 2 ffn]
  void* ffn = nullptr;        // [tokens, ffn]
  void* cos_sin = nullptr;    // [tokens, head_dim] f32, as rope_table wrote it
};

struct BlockArgs {
  const ModelConfig* config = nullptr;
  const OpTable* ops = nullptr;
  const LayerWeights* weights = nullptr;
  const BlockOps* linears = nullptr;
  DType activation = DType::kF32;
  Shard shard;
  int64_t layer = 0;   // of the KV pool
  int64_t window = 0;  // of this layer's attention; 0: all
  const StepBatch* batch = nullptr;
  KvView kv;
  BlockBuffers buffers;
  const BlockObserver* observer = nullptr;  // optional
  // A part of the block. From kOInput on: `attention` holds O's input already; kGateUpInput: `hidden` is past O;
  // kDownInput: `ffn` holds down's input too. REQUIRES: not kQkv. Nothing is computed after `until`.
  BlockPoint from = BlockPoint::kQkvInput;
  std::optional<BlockPoint> until;
};

// The residual stream through attention and feed-forward part; K and V of the tokens go to the pool.
// Row-parallel linears add up over `comm`'s ranks.
Status forward_block(const BlockArgs& args, Comm& comm, ExecContext& exec);

}  // namespace hearth
