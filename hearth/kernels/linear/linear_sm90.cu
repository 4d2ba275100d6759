// SPDX-License-Identifier: Apache-2.0
// linear for plain weights of any float type on CUDA cores (linear_tile_sm90.cuh): what the tensor cores do not take
// (f32 activations), and what they are tested against.
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_tile_sm90.cuh"

namespace hearth {
namespace {

using sm90::PlainDecoder;

template <class X, class W>
Status start(const LinearArgs& args, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  sm90::TileParams<X> params = sm90::tile_params<X>(args, 0, args.x.shape[0]);
  params.set_x(static_cast<const X*>(args.x.data), args.x.row_stride);
  const int64_t row_bytes = w.codes.row_stride * static_cast<int64_t>(sizeof(W));
  const typename PlainDecoder<W>::Params weight{.codes = static_cast<const uint8_t*>(w.codes.data),
                                                .row_bytes = row_bytes,
                                                .aligned = sm90::is_aligned(w.codes.data, 16) && row_bytes % 16 == 0};
  return sm90::start_linear<X, PlainDecoder<W>, false>(params, weight, exec.stream);
}

template <class X>
Status start_of(const LinearArgs& args, ExecContext& exec) {
  switch (args.weight->codes.dtype) {
    case DType::kF32: return start<X, float>(args, exec);
    case DType::kF16: return start<X, __half>(args, exec);
    default: return start<X, __nv_bfloat16>(args, exec);
  }
}

// out = residual + bias, or either; what a product is then added to.
struct FillParams {
  const void *bias, *residual;
  void* out;
  int64_t residual_stride, out_stride, n, count;
  DType bias_dtype, out_dtype;
};

__global__ void __launch_bounds__(256) linear_fill_kernel(FillParams p) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t e = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (e >= p.count) return;
  const int64_t row = e / p.n, col = e % p.n;
  float y = sm90::number_at(p.bias, p.bias_dtype, col);
  if (p.residual != nullptr) y += sm90::number_at(p.residual, p.out_dtype, row * p.residual_stride + col);
  if (p.out_dtype == DType::kF32) {
    static_cast<float*>(p.out)[row * p.out_stride + col] = y;
  } else {
    static_cast<__nv_bfloat16*>(p.out)[row * p.out_stride + col] = __float2bfloat16_rn(y);
  }
}

}  // namespace

int64_t linear_sm90_workspace_bytes(int64_t, int64_t, int64_t, int) { return 0; }

Status linear_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  if (!args.weight->format.is_plain())
    return unsupported("linear: weights of format {}, this kernel has plain ones", to_string(args.weight->format));
  HEARTH_TRY(sm90::check_size(args));
  if (args.x.shape[0] == 0 || args.weight->n == 0) return {};
  return args.x.dtype == DType::kF32 ? start_of<float>(args, exec) : start_of<__nv_bfloat16>(args, exec);
}

Status linear_fill_cuda(const LinearArgs& args, ExecContext& exec) {
  const LinearWeight& w = *args.weight;
  const FillParams params{.bias = w.bias.data,
                          .residual = args.residual.data,
                          .out = args.out.data,
                          .residual_stride = args.residual.row_stride,
                          .out_stride = args.out.row_stride,
                          .n = w.n,
                          .count = args.x.shape[0] * w.n,
                          .bias_dtype = w.bias.dtype,
                          .out_dtype = args.out.dtype};
  Launch how(dim3(static_cast<unsigned>((params.count + 255) / 256)), dim3(256), exec.stream);
  how.pdl = true;
  return launch(how, linear_fill_kernel, params);
}

}  // namespace hearth
