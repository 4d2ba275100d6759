// SPDX-License-Identifier: Apache-2.0
// linear for every quantized format on CUDA cores: activations are rounded into scratch memory (activations_sm90.h),
// codes are decoded into shared memory as they are multiplied (linear_tile_sm90.cuh). Right and general first: what
// faster kernels are tested against.
#include <algorithm>

#include "hearth/kernels/linear/activations_sm90.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_tile_sm90.cuh"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {
namespace {

using sm90::QuantizedDecoder, sm90::QuantizedParams, sm90::StoredCode;

// Rows at once: what bounds the scratch memory.
constexpr int64_t kRowsAtOnce = 4096;

QuantizedParams params_of(const LinearWeight& w) {
  const WeightFormat& format = w.format;
  const bool packed = w.codes.dtype == DType::kU4;
  const int64_t row_bytes = packed ? w.codes.row_stride / 2 : w.codes.row_stride;
  const int64_t chunk_bytes = packed ? sm90::kChunk / 2 : sm90::kChunk;
  QuantizedParams p{.codes = static_cast<const uint8_t*>(w.codes.data),
                    .row_bytes = row_bytes,
                    .scales = w.scales.data,
                    .zeros = format.has_zero_point ? static_cast<const uint8_t*>(w.zeros.data) : nullptr,
                    .lines = w.lines.data,
                    .line_scales = format.integer_lines ? static_cast<const __half*>(w.line_scales.data) : nullptr,
                    .line_index = static_cast<const uint16_t*>(w.line_index.data),
                    .line_stride = w.lines.row_stride,
                    .line_index_stride = w.line_index.row_stride,
                    .block_n = 1,
                    .group_k = static_cast<int>(format.group_k > 0 ? std::min(format.group_k, w.k) : w.k),
                    .bitvectors = format.bitvectors,
                    .scale_dtype = format.scale_dtype,
                    .aligned = sm90::is_aligned(w.codes.data, chunk_bytes) && row_bytes % chunk_bytes == 0,
                    .fixed_zero = format.code == WeightCode::kU4 ? 8.0f : 0.0f};
  switch (format.scale_layout) {
    case ScaleLayout::kNone: p.scales = nullptr; break;
    case ScaleLayout::kTensor: break;
    case ScaleLayout::kRow: p.scale_stride = p.zero_stride = 1; break;
    case ScaleLayout::kBlock: p.block_n = static_cast<int>(std::min(format.block_n, w.n)); [[fallthrough]];
    case ScaleLayout::kGroup:
      p.scale_stride = w.scales.row_stride, p.zero_stride = w.zeros.row_stride;
      p.group_step = 1;
  }
  if (format.code != WeightCode::kE4m3 && format.code != WeightCode::kBitvectors)
    std::ranges::copy(code_values(format.code), p.values);
  return p;
}

// Scales are part of the decoded weights, but with INT8 activations: there the sums of a group are integers.
template <StoredCode kCode>
Status start(const sm90::TileParams<float>& params, const QuantizedParams& weight, bool groups, ExecContext& exec) {
  if (groups) return sm90::start_linear<float, QuantizedDecoder<kCode, false>, true>(params, weight, exec.stream);
  return sm90::start_linear<float, QuantizedDecoder<kCode, true>, false>(params, weight, exec.stream);
}

Status start_of(const WeightFormat& format, const sm90::TileParams<float>& params, const QuantizedParams& weight,
                ExecContext& exec) {
  const bool groups = format.act == ActFormat::kI8PerGroup;
  switch (format.code) {
    case WeightCode::kE4m3: return start<StoredCode::kE4m3>(params, weight, groups, exec);
    case WeightCode::kBitvectors:
      return format.bitvectors > 4 ? start<StoredCode::kLine8>(params, weight, groups, exec)
                                   : start<StoredCode::kLine4>(params, weight, groups, exec);
    default: return start<StoredCode::kNibble>(params, weight, groups, exec);
  }
}

}  // namespace

int64_t linear_quantized_sm90_workspace_bytes(int64_t m, int64_t, int64_t k, int) {
  return sm90::rounded_activations_bytes(std::min(m, kRowsAtOnce), k);
}

Status linear_quantized_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearWeight& w = *args.weight;
  if (!supports_linear_quantized(w.format))
    return unsupported("linear: weights of format {}, this kernel has quantized ones", to_string(w.format));
  const bool is_e4m3 = w.format.act == ActFormat::kE4m3PerToken || w.format.act == ActFormat::kE4m3Static;
  if (args.x.dtype == DType::kE4m3 && (!is_e4m3 || w.k_order))
    return unsupported("linear: x of e4m3 for weights of format {}{}, wanted f32 or bf16", to_string(w.format),
                       w.k_order ? " in another order of columns" : "");
  HEARTH_TRY(sm90::check_size(args));
  const int64_t m = args.x.shape[0];
  const int64_t wanted = linear_quantized_sm90_workspace_bytes(m, w.n, w.k, 1);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_quantized_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
  if (w.n == 0) return {};

  const QuantizedParams weight = params_of(w);
  for (int64_t begin = 0; begin < m; begin += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, m - begin);
    HEARTH_TRY_ASSIGN(const sm90::RoundedActivations rounded, sm90::round_activations(args, begin, rows, exec));
    sm90::TileParams<float> params = sm90::tile_params<float>(args, begin, rows);
    params.set_x(rounded.x, rounded.stride);
    params.x_scale = rounded.scale, params.x_scale_stride = rounded.scale_stride;
    params.group = weight.group_k;
    HEARTH_TRY(start_of(w.format, params, weight, exec));
  }
  return {};
}

}  // namespace hearth
