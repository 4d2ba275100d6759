// SPDX-License-Identifier: Apache-2.0
// linear for 4-bit weights with scales for groups of K on the tensor cores, from the units (nibble_units.h) into which a
// model's load packs them: few rows by linear_units_sm90.h, more by linear_nibble_wide_sm90.h. Weights as they were
// loaded, and what has no units, are linear_quantized_sm90's.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_nibble_wide_sm90.h"
#include "hearth/kernels/linear/linear_units_sm90.h"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/kernels/linear/pack_units_sm90.h"
#include "hearth/kernels/linear/round_rows_sm90.h"
#include "hearth/memory/cuda/cuda_status.h"

namespace hearth {
namespace {

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

bool rounds_x(const WeightFormat& format) { return format.act != ActFormat::kNative; }

// Few rows.
Status multiply_units(LinearArgs args, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  const int64_t m = args.x.rows();
  if (rounds_x(w.format) && args.x.dtype == DType::kBf16 && !sm90::units_round_x(m, w.k)) {
    const int64_t wanted = sm90::round_rows_bytes(m, w.k);
    if (static_cast<int64_t>(exec.workspace.size()) < wanted)
      return resource_exhausted("linear_nibble_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
    HEARTH_TRY_ASSIGN(const sm90::RowsE4m3 rounded, sm90::round_rows(args.x, w, exec.workspace.data(), exec.stream));
    args.x = rounded.codes, args.x_scale = ConstTensorView(rounded.scale, DType::kF32, Shape{m});
  }
  return sm90::linear_units({&args, 1}, exec.stream);
}

}  // namespace

bool supports_linear_nibble_sm90(const WeightFormat& format, DType activation) {
  return activation == DType::kBf16 && has_units(format, kUnitColumns);
}

bool linear_nibble_sm90_takes_rounded(const LinearWeight& weight) {
  return supports_linear_nibble_sm90(weight.format, DType::kBf16) && rounds_x(weight.format) && !weight.k_order;
}

int64_t linear_nibble_sm90_packed_bytes(const WeightFormat& format, int64_t n, int64_t k) {
  if (!has_units(format, k)) return 0;
  return align64(units_bytes(format, n, k)) + (format.act == ActFormat::kE4m3Static ? 64 : 0);
}

Status linear_nibble_sm90_pack(LinearWeight& weight, std::byte* to, void* stream) {
  if (!has_units(weight.format, weight.k) || weight.k_order) return {};
  const int64_t size = units_bytes(weight.format, weight.n, weight.k);
  HEARTH_TRY(sm90::pack_units(weight, to, stream));
  weight.units = ConstTensorView(to, DType::kU8, Shape{size});
  weight.codes = weight.scales = weight.zeros = {};
  if (weight.act_scale) {
    HEARTH_CUDA_TRY(cudaMemcpyAsync(to + align64(size), weight.act_scale.data, sizeof(float), cudaMemcpyDeviceToDevice,
                                    static_cast<cudaStream_t>(stream)));
    weight.act_scale.data = to + align64(size);
  }
  return {};
}

int64_t linear_nibble_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads) {
  return std::max({linear_quantized_sm90_workspace_bytes(m, n, k, threads), sm90::nibble_wide_workspace_bytes(m, n, k),
                   sm90::round_rows_bytes(std::min(m, sm90::kUnitsMostRows), k)});
}

Status linear_nibble_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearWeight& w = *args.weight;
  const int64_t m = args.x.shape[0];
  if (args.x.dtype == DType::kE4m3 && !linear_nibble_sm90_takes_rounded(w))
    return unsupported("linear: x of e4m3 for weights of format {}, wanted f32 or bf16", to_string(w.format));
  if (!w.units) return linear_quantized_sm90(args, exec);
  if (m == 0 || w.n == 0) return {};
  if (m <= sm90::kUnitsMostRows && sm90::fits_units({&args, 1})) return multiply_units(args, exec);
  if (m > sm90::kUnitsMostRows && sm90::fits_nibble_wide(args)) return sm90::linear_nibble_wide_sm90(args, exec);
  return unsupported(
      "linear: packed weights [{}, {}], x of {} with row stride {}; wanted bf16 or e4m3, rows of whole 16 "
      "bytes",
      w.n, w.k, dtype_name(args.x.dtype), args.x.row_stride);
}

Status linear_nibble_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec) {
  if (parts.empty()) return {};
  for (const LinearArgs& args : parts) HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearArgs& first = parts.front();
  const int64_t m = first.x.rows();
  const bool is_rounded = first.x.dtype == DType::kE4m3, rounds = rounds_x(first.weight->format);
  if (m > 0 && m <= sm90::kUnitsMostRows && sm90::fits_units(parts) &&
      (rounds ? is_rounded || sm90::units_round_x(m, first.weight->k) : !is_rounded))
    return sm90::linear_units(parts, exec.stream);
  for (const LinearArgs& args : parts) HEARTH_TRY(linear_nibble_sm90(args, exec));
  return {};
}

}  // namespace hearth
