// SPDX-License-Identifier: Apache-2.0
// The reference of the linear layer for quantized weights: activations rounded as act_quantize.h defines, weights as
// dequantize_row defines, products and sums in double, rounded once. One thread.
#include <span>

#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/quantized_reader.h"

namespace hearth {
namespace {

float float_at(const ConstTensorView& view, int64_t row, int64_t col) {
  const int64_t index = row * view.row_stride + col;
  switch (view.dtype) {
    case DType::kF16: return static_cast<const f16*>(view.data)[index].to_float();
    case DType::kBf16: return static_cast<const bf16*>(view.data)[index].to_float();
    default: return static_cast<const float*>(view.data)[index];
  }
}

// Row `row` of x in W's stored order, rounded, times its scales.
void prepare_x(const LinearArgs& args, int64_t row, std::span<float> rounded, std::span<double> x) {
  const LinearWeight& weight = *args.weight;
  if (args.x.dtype == DType::kE4m3) {
    for (int64_t k = 0; k < weight.k; ++k)
      x[k] = double{args.x.row<e4m3>(row)[k].to_float()} * args.x_scale.row<float>(0)[row];
    return;
  }
  const auto* order = static_cast<const int32_t*>(weight.k_order.data);
  for (int64_t k = 0; k < weight.k; ++k) rounded[order == nullptr ? k : order[k]] = float_at(args.x, row, k);
  const int64_t group = weight.format.group_k > 0 ? weight.format.group_k : weight.k;
  switch (weight.format.act) {
    case ActFormat::kNative: std::copy(rounded.begin(), rounded.end(), x.begin()); return;
    case ActFormat::kE4m3Static: {
      const float scale = float_at(weight.act_scale, 0, 0);
      quantize_act_static(scale, rounded);
      for (int64_t k = 0; k < weight.k; ++k) x[k] = double{rounded[k]} * scale;
      return;
    }
    case ActFormat::kE4m3PerToken: {
      const float scale = quantize_act(weight.format.act, rounded);
      for (int64_t k = 0; k < weight.k; ++k) x[k] = double{rounded[k]} * scale;
      return;
    }
    case ActFormat::kI8PerGroup:
      for (int64_t begin = 0; begin < weight.k; begin += group) {
        const int64_t count = std::min(group, weight.k - begin);
        const float scale = quantize_act(weight.format.act, rounded.subspan(begin, count));
        for (int64_t k = begin; k < begin + count; ++k) x[k] = double{rounded[k]} * scale;
      }
  }
}

}  // namespace

bool linear_quantized_ref_takes_rounded(const LinearWeight& weight) {
  const ActFormat act = weight.format.act;
  return !weight.k_order && (act == ActFormat::kE4m3PerToken || act == ActFormat::kE4m3Static);
}

// A row of W, one of x, and x before its scales.
int64_t linear_quantized_ref_workspace_bytes(int64_t m, int64_t, int64_t k, int) { return (m + 1) * k * 8 + k * 4; }

Status linear_quantized_ref(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args, args.weight != nullptr && linear_quantized_ref_takes_rounded(*args.weight)
                                ? RoundedX::kTaken
                                : RoundedX::kRefused));
  const LinearWeight& weight = *args.weight;
  const int64_t m = args.x.shape[0], k = weight.k;
  const int64_t wanted = linear_quantized_ref_workspace_bytes(m, weight.n, k, 1);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_quantized_ref: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
  auto* doubles = static_cast<double*>(static_cast<void*>(exec.workspace.data()));
  const std::span<double> row(doubles, static_cast<size_t>(k)), x(doubles + k, static_cast<size_t>(m * k));
  const std::span<float> rounded(static_cast<float*>(static_cast<void*>(doubles + (m + 1) * k)),
                                 static_cast<size_t>(k));
  for (int64_t token = 0; token < m; ++token) prepare_x(args, token, rounded, x.subspan(token * k, k));

  const QuantizedReader reader(weight);
  for (int64_t n = 0; n < weight.n; ++n) {
    for (int64_t i = 0; i < k; ++i) row[i] = double{reader.value(n, i)} * reader.scale(n, i / reader.group_size());
    for (int64_t token = 0; token < m; ++token) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += x[token * k + i] * row[i];
      if (weight.bias) sum += float_at(weight.bias, 0, n);
      if (args.residual) sum += float_at(args.residual, token, n);
      const auto value = static_cast<float>(sum);
      if (args.out.dtype == DType::kF32) {
        args.out.row<float>(token)[n] = value;
      } else {
        args.out.row<bf16>(token)[n] = bf16::from_float(value);
      }
    }
  }
  return {};
}

}  // namespace hearth
