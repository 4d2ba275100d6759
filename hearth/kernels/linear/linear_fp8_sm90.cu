// SPDX-License-Identifier: Apache-2.0
// linear for weights of E4M3 on the tensor cores: the rows of x are rounded to E4M3 into scratch memory, as
// act_quantize.h says, then few rows go through linear_narrow_sm90.h and more through cuBLASLt, which applies both
// scales to its sums, or where it does not take them through the former in turns. What lies as neither wants it is
// linear_quantized_sm90's.
#include <algorithm>
#include <cfloat>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Where the parts of the scratch memory begin.
struct Scratch {
  int64_t x_scale, weight_scale, workspace;

  Scratch(int64_t m, int64_t n, int64_t k)
      : x_scale(align256(m * k)), weight_scale(x_scale + align256(m * 4)), workspace(weight_scale + align256(n * 4)) {}
};

struct QuantizeParams {
  const __nv_bfloat16* x;
  const float* static_scale;  // kE4m3Static, or null
  uint8_t* out;               // [m, k]
  float* scale;               // [m]
  int64_t x_stride;
  int k;
};

// A block rounds a row, 8 neighbouring columns a thread: the bits of quantize_act().
__global__ void __launch_bounds__(kThreads) quantize_e4m3_kernel(const __grid_constant__ QuantizeParams p) {
  __shared__ unsigned warp_largest[kThreads / 32];
  using Numbers = sm90::Pack<__nv_bfloat16, kVector>;
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const __nv_bfloat16* const x = p.x + blockIdx.x * p.x_stride;
  float scale = 0;
  if (p.static_scale != nullptr) {
    scale = *p.static_scale;
  } else {
    // Largest magnitudes as integers: NaN and infinities win.
    unsigned largest = 0;
    for (int k = threadIdx.x * kVector; k < p.k; k += kThreads * kVector) {
      const Numbers numbers = *reinterpret_cast<const Numbers*>(x + k);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        largest = max(largest, __float_as_uint(sm90::widen(numbers.at[i])) & 0x7FFFFFFFu);
    }
    largest = __reduce_max_sync(0xFFFFFFFF, largest);
    if (threadIdx.x % 32 == 0) warp_largest[threadIdx.x / 32] = largest;
    __syncthreads();
    for (const unsigned of_warp : warp_largest) largest = max(largest, of_warp);
    scale = __fdiv_rn(__uint_as_float(largest), 448.0f);
    if (scale < FLT_MIN) scale = 1;
    if (largest >= 0x7F800000u) scale = __uint_as_float(0x7FC00000u);
  }
  if (threadIdx.x == 0) p.scale[blockIdx.x] = scale;
  for (int k = threadIdx.x * kVector; k < p.k; k += kThreads * kVector) {
    const Numbers numbers = *reinterpret_cast<const Numbers*>(x + k);
    sm90::Pack<uint8_t, kVector> codes;
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      codes.at[i] =
          isnan(scale) ? 0
                       : __nv_cvt_float_to_fp8(__fdiv_rn(sm90::widen(numbers.at[i]), scale), __NV_SATFINITE, __NV_E4M3);
    *reinterpret_cast<sm90::Pack<uint8_t, kVector>*>(p.out + int64_t{blockIdx.x} * p.k + k) = codes;
  }
}

// The weight's scales as cuBLASLt wants them: one f32 for each row.
__global__ void __launch_bounds__(kThreads)
    widen_scales_kernel(const void* from, DType dtype, int step, int64_t n, float* to) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < n) to[row] = sm90::number_at(from, dtype, row * step);
}

bool can_round(const LinearArgs& args) {
  return !args.weight->k_order && args.weight->k % 16 == 0 && args.x.row_stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(args.x.data) % 16 == 0;
}

// For products of 8-bit numbers cuBLASLt wants every matrix in whole vectors of 16 bytes.
bool cublaslt_takes(const LinearArgs& args) {
  const auto in_vectors = [](const ConstTensorView& view) {
    return !view ||
           (reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && dtype_bytes(view.dtype, view.cols()) % 16 == 0 &&
            dtype_bytes(view.dtype, view.row_stride) % 16 == 0);
  };
  return in_vectors(args.weight->codes) && in_vectors(args.out) && in_vectors(args.residual);
}

}  // namespace

bool supports_linear_fp8_sm90(const WeightFormat& format, DType activation) {
  return activation == DType::kBf16 && format.code == WeightCode::kE4m3 &&
         (format.act == ActFormat::kE4m3PerToken || format.act == ActFormat::kE4m3Static) &&
         (format.scale_layout == ScaleLayout::kRow || format.scale_layout == ScaleLayout::kTensor);
}

int64_t linear_fp8_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads) {
  return std::max(linear_quantized_sm90_workspace_bytes(m, n, k, threads),
                  Scratch(m, n, k).workspace + linear_cublaslt_workspace_bytes(m, n, k, threads));
}

Status linear_fp8_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  const LinearWeight& w = *args.weight;
  const int64_t m = args.x.shape[0];
  const bool narrow = sm90::fits_narrow(ConstTensorView(exec.workspace.data(), DType::kE4m3, Shape{m, w.k}), w.codes);
  const bool wide = cublaslt_takes(args);
  if (!supports_linear_fp8_sm90(w.format, args.x.dtype) || !can_round(args) || (!narrow && !wide))
    return linear_quantized_sm90(args, exec);
  if (m == 0 || w.n == 0) return {};
  const Scratch scratch(m, w.n, w.k);
  const int64_t wanted = linear_fp8_sm90_workspace_bytes(m, w.n, w.k, 1);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_fp8_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);

  std::byte* const memory = exec.workspace.data();
  auto* const x_scale = reinterpret_cast<float*>(memory + scratch.x_scale);
  const QuantizeParams rounding{.x = static_cast<const __nv_bfloat16*>(args.x.data),
                                .static_scale = static_cast<const float*>(w.act_scale.data),
                                .out = reinterpret_cast<uint8_t*>(memory),
                                .scale = x_scale,
                                .x_stride = args.x.row_stride,
                                .k = static_cast<int>(w.k)};
  Launch how(dim3(static_cast<unsigned>(m)), dim3(kThreads), exec.stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, quantize_e4m3_kernel, rounding));
  const ConstTensorView x8(memory, DType::kE4m3, Shape{m, w.k});
  const int step = w.format.scale_layout == ScaleLayout::kRow ? 1 : 0;
  if (narrow && (m <= sm90::kNarrowMostRows || !wide)) {
    sm90::NarrowProduct product = sm90::narrow_product(args);
    product.weight_scale = w.scales.data, product.weight_scale_step = step;
    product.weight_scale_dtype = w.format.scale_dtype;
    product.x_stride = w.k;
    const int64_t out_bytes = dtype_bytes(args.out.dtype, 1);
    for (int64_t begin = 0; begin < m; begin += sm90::kNarrowMostRows) {
      product.m = static_cast<int>(std::min(sm90::kNarrowMostRows, m - begin));
      product.x = reinterpret_cast<const uint8_t*>(memory) + begin * w.k;
      product.x_scale = x_scale + begin;
      product.out = static_cast<std::byte*>(args.out.data) + begin * args.out.row_stride * out_bytes;
      if (args.residual)
        product.residual =
            static_cast<const std::byte*>(args.residual.data) + begin * args.residual.row_stride * out_bytes;
      HEARTH_TRY(sm90::start_linear_narrow(product, DType::kE4m3, exec.stream));
    }
    return {};
  }
  const auto* weight_scale = static_cast<const float*>(w.scales.data);
  if (step == 0 || w.format.scale_dtype != DType::kF32) {
    auto* const widened = reinterpret_cast<float*>(memory + scratch.weight_scale);
    how.grid = dim3(static_cast<unsigned>((w.n + kThreads - 1) / kThreads));
    HEARTH_TRY(launch(how, widen_scales_kernel, w.scales.data, w.format.scale_dtype, step, w.n, widened));
    weight_scale = widened;
  }
  CublasLtProduct product{.x = x8,
                          .weight = w.codes,
                          .added = args.residual,
                          .out = args.out,
                          .x_scale = x_scale,
                          .weight_scale = weight_scale};
  if (w.bias) {
    HEARTH_TRY(linear_fill_cuda(args, exec));
    product.added = args.out;
  }
  return multiply_cublaslt(product, exec.workspace.subspan(static_cast<size_t>(scratch.workspace)), exec.stream);
}

}  // namespace hearth
