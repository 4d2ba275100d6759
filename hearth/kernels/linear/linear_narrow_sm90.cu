// SPDX-License-Identifier: Apache-2.0
// Decode: W is the M side of the MMA, tokens the N side. A block has 16 rows of W, and its warps share K in pieces of
// 128 bytes. The order of K within a piece is free as long as both sides have the same one: a lane takes 16
// neighbouring bytes of a row, which are the registers of two MMAs, for W and for x alike; so nothing goes through
// shared memory but the warps' sums, which are added in their order. A warp asks for its next piece before it
// multiplies the one it has, and for the first one before the kernels before this one have ended.
#include "hearth/kernels/linear/linear_narrow_sm90.h"

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace sm90 {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = kNarrowRows, kTokens = 8;  // of an MMA's output
constexpr int kChunkBytes = 64;                  // of a row that a warp loads at once: 16 for each of four lanes
constexpr int kChunks = 2;                       // of a piece
constexpr int kPieceBytes = kChunks * kChunkBytes;

// d += a b: two registers each of W's rows r and r + 8, two of x.
template <bool kFp8>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kFp8) {
    mma_e4m3(d, a, b0, b1);
  } else {
    mma_bf16(d, a, b0, b1);
  }
}

// A lane's part of a piece: rows r and r + 8.
struct Piece {
  uint4 low[kChunks], high[kChunks];

  __device__ __forceinline__ void load(const uint8_t* low_row, const uint8_t* high_row, int begin, int row_bytes) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = begin + c * kChunkBytes;
      low[c] = high[c] = make_uint4(0, 0, 0, 0);
      if (at < row_bytes) low[c] = load_streamed(low_row + at), high[c] = load_streamed(high_row + at);
    }
  }
};

struct Place {
  int part, block;
};
__device__ __forceinline__ Place find_part(const NarrowProduct& p) {
  int part = 0, block = static_cast<int>(blockIdx.x);
  while (part + 1 < p.parts && block >= (p.part[part].n + kRows - 1) / kRows)
    block -= (p.part[part++].n + kRows - 1) / kRows;
  return {part, block};
}

// kResident: blocks that a multiprocessor holds; many hide each other's beginnings and ends. Grid: the parts' blocks
// one after the other. Shared: kWarps * m * (kRows + 1) floats.
template <bool kFp8, int kTiles, int kResident>
__global__ void __launch_bounds__(kThreads, kResident) linear_narrow_kernel(const __grid_constant__ NarrowProduct p) {
  extern __shared__ float sums[];  // [kWarps][m][kRows + 1]
  __shared__ Place shared_place;   // for the end: no registers until then
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, lane_bytes = lane % 4 * 16;
  const int pieces = (p.row_bytes + kPieceBytes - 1) / kPieceBytes;
  const uint8_t *low_row, *high_row;
  {
    const Place place = find_part(p);
    if (threadIdx.x == 0) shared_place = place;
    const NarrowPart& part = p.part[place.part];
    const int first_row = place.block * kRows;
    low_row = part.weight + min(first_row + r, part.n - 1) * part.weight_stride + lane_bytes;
    high_row = part.weight + min(first_row + r + 8, part.n - 1) * part.weight_stride + lane_bytes;
  }
  Piece next;
  if (warp < pieces) next.load(low_row, high_row, warp * kPieceBytes, p.row_bytes);
  pdl_launch_next();
  pdl_wait();
  float total[kTiles][4] = {};
  for (int piece = warp; piece < pieces; piece += kWarps) {
    const Piece now = next;
    if (piece + kWarps < pieces) next.load(low_row, high_row, (piece + kWarps) * kPieceBytes, p.row_bytes);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int token = tile * kTokens + r;
      const uint8_t* const x_row = p.x + token * p.x_stride + lane_bytes;
      // The tensor cores' sums of E4M3 have few bits: they are added up in f32 after each piece.
      float sum[4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int at = piece * kPieceBytes + c * kChunkBytes;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (token < p.m && at < p.row_bytes) x = *reinterpret_cast<const uint4*>(x_row + at);
        multiply<kFp8>(sum, {now.low[c].x, now.high[c].x, now.low[c].y, now.high[c].y}, x.x, x.y);
        multiply<kFp8>(sum, {now.low[c].z, now.high[c].z, now.low[c].w, now.high[c].w}, x.z, x.w);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) total[tile][i] += sum[i];
    }
  }
  const auto sum_at = [&](int of_warp, int token, int row) -> float& {
    return sums[(of_warp * p.m + token) * (kRows + 1) + row];
  };
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int token = tile * kTokens + lane % 4 * 2 + i % 2; token < p.m)
        sum_at(warp, token, r + i / 2 * 8) = total[tile][i];
  __syncthreads();

  const NarrowPart& part = p.part[shared_place.part];
  const int first_row = shared_place.block * kRows;
  for (int e = threadIdx.x; e < p.m * kRows; e += kThreads) {
    const int token = e / kRows, row = first_row + e % kRows;
    if (row >= part.n) continue;
    float y = sum_at(0, token, e % kRows);
    for (int w = 1; w < min(kWarps, pieces); ++w) y += sum_at(w, token, e % kRows);
    if (part.weight_scale != nullptr)
      y *= number_at(part.weight_scale, part.weight_scale_dtype, row * part.weight_scale_step);
    if (p.x_scale != nullptr) y *= p.x_scale[token];
    if (part.bias != nullptr) y += number_at(part.bias, part.bias_dtype, row);
    if (part.residual != nullptr) y += number_at(part.residual, part.out_dtype, token * part.residual_stride + row);
    if (part.out_dtype == DType::kF32) {
      static_cast<float*>(part.out)[token * part.out_stride + row] = y;
    } else {
      static_cast<__nv_bfloat16*>(part.out)[token * part.out_stride + row] = __float2bfloat16_rn(y);
    }
  }
}

template <bool kFp8, int kTiles, int kResident>
Status start_config(const NarrowProduct& p, void* stream) {
  int64_t blocks = 0;
  for (int i = 0; i < p.parts; ++i) blocks += (p.part[i].n + kRows - 1) / kRows;
  Launch how(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream);
  how.pdl = true;
  how.shared_bytes = kWarps * p.m * (kRows + 1) * static_cast<int>(sizeof(float));
  return launch(how, linear_narrow_kernel<kFp8, kTiles, kResident>, p);
}

template <bool kFp8>
Status start(const NarrowProduct& p, void* stream) {
  // As many as have no registers spilled.
  if (p.m <= kTokens) return start_config<kFp8, 1, 4>(p, stream);
  return start_config < kFp8, 2, kFp8 ? 2 : 3 > (p, stream);
}

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
  return type == DType::kE4m3 ? start<true>(product, stream) : start<false>(product, stream);
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
