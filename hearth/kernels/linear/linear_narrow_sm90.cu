// SPDX-License-Identifier: Apache-2.0
// Weights of bf16 and E4M3 for the ring of linear_ring_sm90.cuh: what lies in shared memory are the MMA's registers.
#include "hearth/kernels/linear/linear_narrow_sm90.h"

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_ring_sm90.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"

namespace hearth {
namespace sm90 {
namespace {

// K's order within a piece is free as long as W and x have the same: a lane takes 32 neighbouring bytes of a row, which
// are its registers of four MMAs.
template <bool kFp8>
struct PlainCodec {
  struct Lane {
    int first, second;
    __device__ __forceinline__ explicit Lane(int lane)
        : first(keep(static_cast<int>(swizzled_offset(lane / 4, lane % 4 * 32)))), second(keep(first ^ 16)) {}
  };

  template <int kTiles>
  __device__ __forceinline__ static void multiply(const std::byte* weight, const std::byte* tokens, const Lane& lane,
                                                  float (&sum)[kTiles][4]) {
    const auto load = [&](const std::byte* from, int c) {
      return *reinterpret_cast<const uint4*>(from + (c == 0 ? lane.first : lane.second));
    };
    uint4 low[2], high[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) low[c] = load(weight, c), high[c] = load(weight + 8 * kChunkBytes, c);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const uint4 x = load(tokens + t * (kRingTileTokens * kChunkBytes), c);
        mma(sum[t], {low[c].x, high[c].x, low[c].y, high[c].y}, x.x, x.y);
        mma(sum[t], {low[c].z, high[c].z, low[c].w, high[c].w}, x.z, x.w);
      }
  }

 private:
  // d += a b: two registers each of W's rows r and r + 8, two of x.
  __device__ __forceinline__ static void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (kFp8) {
      mma_e4m3(d, a, b0, b1);
    } else {
      mma_bf16(d, a, b0, b1);
    }
  }
};

bool in_vectors(const ConstTensorView& view) {
  const int64_t stride = dtype_bytes(view.dtype, view.row_stride);
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && (view.rows() == 1 || stride % 16 == 0);
}

}  // namespace

bool fits_narrow(const ConstTensorView& x, const ConstTensorView& weight) {
  const int64_t row_bytes = dtype_bytes(weight.dtype, weight.cols());
  return row_bytes > 0 && row_bytes % kChunkBytes == 0 && row_bytes < (int64_t{1} << 30) &&
         weight.rows() < (int64_t{1} << 30) && in_vectors(x) && in_vectors(weight);
}

NarrowPart narrow_part(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  return {.weight = static_cast<const uint8_t*>(w.codes.data),
          .weight_stride = dtype_bytes(w.codes.dtype, w.codes.row_stride),
          .n = static_cast<int>(w.n),
          .weight_scale_step = 0,
          .weight_scale = nullptr,
          .bias = w.bias.data,
          .residual = args.residual.data,
          .out = args.out.data,
          .residual_stride = args.residual.row_stride,
          .out_stride = args.out.row_stride,
          .weight_scale_dtype = DType::kF32,
          .bias_dtype = w.bias.dtype,
          .out_dtype = args.out.dtype};
}

NarrowProduct narrow_product(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  return {.x = static_cast<const uint8_t*>(args.x.data),
          .x_stride = dtype_bytes(args.x.dtype, args.x.row_stride),
          .m = static_cast<int>(args.x.shape[0]),
          .row_bytes = static_cast<int>(dtype_bytes(w.codes.dtype, w.k)),
          .x_scale = nullptr,
          .parts = 1,
          .part = {narrow_part(args)}};
}

Status start_linear_narrow(const NarrowProduct& product, DType type, void* stream) {
  HEARTH_CHECK(product.m >= 1 && product.m <= kNarrowMostRows, "linear: {} tokens", product.m);
  return type == DType::kE4m3 ? start_ring<PlainCodec<true>>(product, stream)
                              : start_ring<PlainCodec<false>>(product, stream);
}

}  // namespace sm90

Status linear_bf16_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  const int64_t m = args.x.shape[0];
  if (args.x.dtype != DType::kBf16 || args.weight->codes.dtype != DType::kBf16 || m == 0 || args.weight->n == 0 ||
      m > sm90::kNarrowMostRows || !sm90::fits_narrow(args.x, args.weight->codes))
    return linear_cublaslt(args, exec);
  return sm90::start_linear_narrow(sm90::narrow_product(args), DType::kBf16, exec.stream);
}

}  // namespace hearth
