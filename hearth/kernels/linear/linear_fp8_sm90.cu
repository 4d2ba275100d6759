// SPDX-License-Identifier: Apache-2.0
// linear for weights of E4M3 on the tensor cores: the rows of x are rounded to E4M3 into scratch memory, as
// act_quantize.h says, unless the op before did it; then few rows go through linear_narrow_sm90.h, some dozens through
// linear_stream_sm90.h, and more through cuBLASLt, which applies both scales to its sums, or where it does not take
// them through the former in turns. What lies as none of them wants it is linear_quantized_sm90's.
#include <algorithm>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/linear/linear_stream_sm90.h"
#include "hearth/kernels/linear/round_rows_sm90.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Where the parts of the scratch memory begin.
struct Scratch {
  int64_t weight_scale, workspace;

  Scratch(int64_t m, int64_t n, int64_t k)
      : weight_scale(sm90::round_rows_bytes(m, k)), workspace(weight_scale + align256(n * 4)) {}
};

// The weight's scales as cuBLASLt wants them: one f32 for each row.
__global__ void __launch_bounds__(kThreads)
    widen_scales_kernel(const void* from, DType dtype, int step, int64_t n, float* to) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < n) to[row] = sm90::number_at(from, dtype, row * step);
}

bool can_round(const LinearArgs& args) { return !args.weight->k_order && sm90::can_round_rows(args.x); }

// For products of 8-bit numbers cuBLASLt wants every matrix in whole vectors of 16 bytes.
bool cublaslt_takes(const LinearArgs& args) {
  const auto in_vectors = [](const ConstTensorView& view) {
    return !view ||
           (reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && dtype_bytes(view.dtype, view.cols()) % 16 == 0 &&
            dtype_bytes(view.dtype, view.row_stride) % 16 == 0);
  };
  return in_vectors(args.weight->codes) && in_vectors(args.out) && in_vectors(args.residual);
}

// Weight scales: from one row to the next.
int scale_step(const LinearWeight& w) { return w.format.scale_layout == ScaleLayout::kRow ? 1 : 0; }

sm90::NarrowPart narrow_part(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  sm90::NarrowPart part = sm90::narrow_part(args);
  part.weight_scale = w.scales.data, part.weight_scale_step = scale_step(w);
  part.weight_scale_dtype = w.format.scale_dtype;
  return part;
}

// By the kernels for few rows.
Status start_few(const sm90::NarrowProduct& product, bool stream, std::span<std::byte> workspace, ExecContext& exec) {
  return stream && product.m > sm90::kNarrowMostRows
             ? sm90::start_linear_stream(product, workspace, exec.staged.counters, exec.stream)
             : sm90::start_linear_narrow(product, DType::kE4m3, exec.stream);
}

// The same, in turns.
Status multiply_few(const LinearArgs& args, const sm90::RowsE4m3& x, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  sm90::NarrowProduct product = sm90::narrow_product(args);
  sm90::NarrowPart& part = product.part[0] = narrow_part(args);
  product.x_stride = x.codes.row_stride;
  const int64_t m = args.x.shape[0], out_bytes = dtype_bytes(args.out.dtype, 1);
  const bool stream = sm90::fits_stream(x.codes, w.codes);
  const int64_t most = stream ? sm90::kStreamMostTokens : sm90::kNarrowMostRows;
  const auto workspace = exec.workspace.subspan(static_cast<size_t>(Scratch(m, w.n, w.k).workspace));
  for (int64_t begin = 0; begin < m; begin += most) {
    product.m = static_cast<int>(std::min(most, m - begin));
    product.x = static_cast<const uint8_t*>(x.codes.data) + begin * x.codes.row_stride;
    product.x_scale = x.scale + begin;
    part.out = static_cast<std::byte*>(args.out.data) + begin * args.out.row_stride * out_bytes;
    if (args.residual)
      part.residual = static_cast<const std::byte*>(args.residual.data) + begin * args.residual.row_stride * out_bytes;
    HEARTH_TRY(start_few(product, stream, workspace, exec));
  }
  return {};
}

// By cuBLASLt.
Status multiply_wide(const LinearArgs& args, const sm90::RowsE4m3& x, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  const Scratch scratch(args.x.shape[0], w.n, w.k);
  const auto* weight_scale = static_cast<const float*>(w.scales.data);
  if (scale_step(w) == 0 || w.format.scale_dtype != DType::kF32) {
    auto* const widened = reinterpret_cast<float*>(exec.workspace.data() + scratch.weight_scale);
    Launch how(dim3(static_cast<unsigned>((w.n + kThreads - 1) / kThreads)), dim3(kThreads), exec.stream);
    how.pdl = true;
    HEARTH_TRY(launch(how, widen_scales_kernel, w.scales.data, w.format.scale_dtype, scale_step(w), w.n, widened));
    weight_scale = widened;
  }
  CublasLtProduct product{.x = x.codes,
                          .weight = w.codes,
                          .added = args.residual,
                          .out = args.out,
                          .x_scale = x.scale,
                          .weight_scale = weight_scale};
  if (w.bias) {
    HEARTH_TRY(linear_fill_cuda(args, exec));
    product.added = args.out;
  }
  return multiply_cublaslt(product, exec.workspace.subspan(static_cast<size_t>(scratch.workspace)), exec.stream);
}

}  // namespace

bool supports_linear_fp8_sm90(const WeightFormat& format, DType activation) {
  return activation == DType::kBf16 && format.code == WeightCode::kE4m3 &&
         (format.act == ActFormat::kE4m3PerToken || format.act == ActFormat::kE4m3Static) &&
         (format.scale_layout == ScaleLayout::kRow || format.scale_layout == ScaleLayout::kTensor);
}

bool linear_fp8_sm90_takes_rounded(const LinearWeight& weight) {
  const ConstTensorView any_x(nullptr, DType::kE4m3, Shape{1, weight.k});
  return supports_linear_fp8_sm90(weight.format, DType::kBf16) && !weight.k_order &&
         sm90::fits_narrow(any_x, weight.codes);
}

int64_t linear_fp8_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads) {
  return std::max(linear_quantized_sm90_workspace_bytes(m, n, k, threads),
                  Scratch(m, n, k).workspace + std::max(linear_cublaslt_workspace_bytes(m, n, k, threads),
                                                        sm90::linear_stream_workspace_bytes()));
}

Status linear_fp8_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearWeight& w = *args.weight;
  const int64_t m = args.x.shape[0];
  const bool is_rounded = args.x.dtype == DType::kE4m3;
  const ConstTensorView scratch_x(exec.workspace.data(), DType::kE4m3, Shape{m, w.k});
  const bool narrow = sm90::fits_narrow(is_rounded ? args.x : scratch_x, w.codes);
  const bool wide = cublaslt_takes(args);
  if (is_rounded && (!linear_fp8_sm90_takes_rounded(w) || !narrow))
    return unsupported("linear: x of e4m3 at a stride of {} for weights of format {}; wanted 16-byte vectors",
                       args.x.row_stride, to_string(w.format));
  if (!is_rounded && (!supports_linear_fp8_sm90(w.format, args.x.dtype) || !can_round(args) || (!narrow && !wide)))
    return linear_quantized_sm90(args, exec);
  if (m == 0 || w.n == 0) return {};
  const int64_t wanted = linear_fp8_sm90_workspace_bytes(m, w.n, w.k, 1);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_fp8_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);

  sm90::RowsE4m3 x{args.x, static_cast<const float*>(args.x_scale.data)};
  if (!is_rounded) {
    HEARTH_TRY_ASSIGN(x, sm90::round_rows(args.x, w, exec.workspace.data(), exec.stream));
  }
  return narrow && (m <= sm90::kStreamMostTokens || !wide) ? multiply_few(args, x, exec) : multiply_wide(args, x, exec);
}

Status linear_fp8_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec) {
  if (parts.empty()) return {};
  for (const LinearArgs& args : parts) HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearArgs& first = parts.front();
  const int64_t m = first.x.rows();
  bool together = parts.size() <= sm90::kNarrowMostParts && first.x.dtype == DType::kE4m3 && m >= 1 &&
                  m <= sm90::kStreamMostTokens,
       stream = true;
  for (const LinearArgs& args : parts) {
    together = together && args.weight->n > 0 && linear_fp8_sm90_takes_rounded(*args.weight) &&
               sm90::fits_narrow(args.x, args.weight->codes);
    stream = stream && sm90::fits_stream(args.x, args.weight->codes);
  }
  if (!together || (!stream && m > sm90::kNarrowMostRows)) {
    for (const LinearArgs& args : parts) HEARTH_TRY(linear_fp8_sm90(args, exec));
    return {};
  }
  sm90::NarrowProduct product = sm90::narrow_product(first);
  product.x_stride = first.x.row_stride;
  product.x_scale = static_cast<const float*>(first.x_scale.data);
  product.parts = static_cast<int>(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) product.part[i] = narrow_part(parts[i]);
  return start_few(product, stream, exec.workspace, exec);
}

}  // namespace hearth
