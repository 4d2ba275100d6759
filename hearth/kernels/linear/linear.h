// SPDX-License-Identifier: Apache-2.0
// Linear layers: y = x W^T + bias, W in any format that an op exists for. A model looks its ops up once,
// when it loads (LinearOp), and calls them at every step.
#pragma once

#include <span>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/weight_format.h"

namespace hearth {

// out = residual + x W^T + bias
//   x        [m, k] f32 or bf16, the model's activation type; or e4m3 with x_scale: rounded already as
//            weight.format.act says (rounded_rows.h), for ops whose takes_rounded() says so of this weight
//   x_scale  [m] f32, with an x of e4m3 alone
//   weight   [n, k], weight.bias [n] optional
//   residual [m, n] as out, optional; may be out itself
//   out      [m, n] as x, or f32 (logits); bf16 or f32 with an x of e4m3
// Numerics: products and sums in f32; a row of out is a function of the same row of x alone, bit for bit,
// whatever m is and wherever the row stands. Quantized weights: x is rounded first as weight.format.act says
// (act_quantize.h) and W acts as QuantizedMatrix::dequantize_row says, that is as f32(scale * value); k_order gathers
// x.
//   kNative, kE4m3PerToken, kE4m3Static: out = s (sum of x8 W), s the scale of x (1 for kNative)
//   kI8PerGroup: out = sum over groups of (scale s_group (sum of x8 value)); where values are integers (integer lines,
//   kU4, kI4SignMagnitude) the inner sums are those integers exactly
// Errors: InvalidArgument for shapes or types that disagree, Unsupported for an x of e4m3 where the op takes none,
// ResourceExhausted for a workspace smaller than workspace_bytes said.
struct LinearArgs {
  ConstTensorView x;
  const LinearWeight* weight = nullptr;
  ConstTensorView residual;
  TensorView out;
  ConstTensorView x_scale = {};
};

// One implementation of the linear layer for one weight format on one backend.
struct LinearOp {
  std::string_view name;
  // Scratch that run() needs for up to m rows with `threads` threads.
  int64_t (*workspace_bytes)(int64_t m, int64_t n, int64_t k, int threads);
  Status (*run)(const LinearArgs& args, ExecContext& exec);
  // Whether run() takes rows of x that are rounded already, of any number, for this weight; null: for none.
  bool (*takes_rounded)(const LinearWeight& weight) = nullptr;
  // Several products with the same x, as fast as one of all their rows where the backend can. The sums are those of
  // run() of each, but their order may be another. Null: there is only run().
  Status (*run_parts)(std::span<const LinearArgs> parts, ExecContext& exec) = nullptr;
  // A model's load packs each weight once, where the op has an order of its own for it; both null where none has.
  // Bytes that pack() takes for a weight; 0: it leaves it as it is.
  int64_t (*packed_bytes)(const WeightFormat& format, int64_t n, int64_t k) = nullptr;
  // Packs `weight`, in canonical form, to `to` [packed_bytes], which is elsewhere and 64-byte aligned, by work in
  // `stream` (a Queue's), and moves its views there, but the bias: LinearWeight::units. Leaves a weight that it cannot
  // pack as it is: its units stay empty.
  Status (*pack)(LinearWeight& weight, std::byte* to, void* stream) = nullptr;
};

// Whether an op takes an x of e4m3.
enum class RoundedX { kRefused, kTaken };
Status validate(const LinearArgs& args, RoundedX rounded = RoundedX::kRefused);
// The same without a look into the tensors' memory, which may be that of a GPU.
Status validate_on_device(const LinearArgs& args, RoundedX rounded = RoundedX::kRefused);
// Plain formats (f32, f16, bf16 weights).
Status linear_ref(const LinearArgs& args, ExecContext& exec);
int64_t linear_cpu_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_cpu(const LinearArgs& args, ExecContext& exec);
// Quantized formats, read as stored. An E4M3 code of W is no NaN.
// True for E4M3, the 4-bit codes and bitvectors; kI8PerGroup wants groups of whole multiples of 8 (or no groups).
bool supports_linear_quantized(const WeightFormat& format);
bool linear_quantized_ref_takes_rounded(const LinearWeight& weight);
int64_t linear_quantized_ref_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_quantized_ref(const LinearArgs& args, ExecContext& exec);
int64_t linear_quantized_cpu_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads);
Status linear_quantized_cpu(const LinearArgs& args, ExecContext& exec);

}  // namespace hearth
