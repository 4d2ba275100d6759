// SPDX-License-Identifier: Apache-2.0
// second_moments on CUDA cores: a block of threads owns a tile of the upper triangle for all tokens, so that every sum
// has one order, that of the CPU: f32 fused multiply-adds over kMomentTokens tokens, then an f64 addition to memory.
#include "hearth/kernels/second_moments/second_moments.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;  // 16 x 16, each with a square of the tile
constexpr int kSide = 16;
constexpr int kDepth = 16;  // tokens in shared memory
static_assert(kMomentTokens % kDepth == 0);

struct SecondMomentsParams {
  const float* x;
  double* sums;
  int64_t x_stride, sums_stride;
  int channels, tokens, tiles;
  bool add;
};

// Two stages of the tokens' values at the tile's rows and columns.
template <int kTile>
struct alignas(16) TileStorage {
  float row[2][kDepth][kTile];
  float column[2][kDepth][kTile];
};

// Tile `index` of the upper triangle, rows first.
struct TilePlace {
  int row, column;
};
__device__ __forceinline__ TilePlace place_of(int index, int tiles) {
  int row = 0;
  for (int left = tiles; index >= left; --left, ++row) index -= left;
  return {row, row + index};
}

// kSquare x kSquare sums a thread, in strips of four channels: strip s is at channel (s * kSide + its place) * 4 of the
// tile, so that the threads of a warp read shared memory without conflicts.
template <int kSquare>
__global__ void __launch_bounds__(kThreads) second_moments_kernel(SecondMomentsParams p) {
  constexpr int kTile = kSquare * kSide, kStrips = kSquare / 4;
  constexpr int kLoads = kDepth * kTile / kThreads;  // of each side, a thread
  __shared__ TileStorage<kTile> shared;
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const TilePlace place = place_of(static_cast<int>(blockIdx.x), p.tiles);
  const int first_row = place.row * kTile, first_column = place.column * kTile;
  const int ty = static_cast<int>(threadIdx.x) / kSide, tx = static_cast<int>(threadIdx.x) % kSide;

  float next_row[kLoads], next_column[kLoads];
  // Values of tokens from `token` on; zeros past the last token and channel, which add nothing.
  const auto fetch = [&](int token) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const int t = token + at / kTile, channel = at % kTile;
      const float* const from = p.x + t * p.x_stride;
      const bool inside = t < p.tokens;
      next_row[i] = inside && first_row + channel < p.channels ? from[first_row + channel] : 0.0f;
      next_column[i] = inside && first_column + channel < p.channels ? from[first_column + channel] : 0.0f;
    }
  };
  const auto put = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      shared.row[stage][at / kTile][at % kTile] = next_row[i];
      shared.column[stage][at / kTile][at % kTile] = next_column[i];
    }
  };

  float sum[kSquare][kSquare] = {};
  bool add = p.add;
  const auto flush = [&] {
#pragma unroll
    for (int r = 0; r < kSquare; ++r) {
      const int row = first_row + (r / 4 * kSide + ty) * 4 + r % 4;
#pragma unroll
      for (int c = 0; c < kSquare; ++c) {
        const int column = first_column + (c / 4 * kSide + tx) * 4 + c % 4;
        if (row < p.channels && column < p.channels) {
          double* const to = p.sums + row * p.sums_stride + column;
          *to = (add ? *to : 0.0) + static_cast<double>(sum[r][c]);
        }
        sum[r][c] = 0;
      }
    }
    add = true;
  };

  fetch(0);
  put(0);
  __syncthreads();
  for (int token = 0, stage = 0; token == 0 || token < p.tokens; token += kDepth, stage ^= 1) {
    const bool more = token + kDepth < p.tokens;
    if (more) fetch(token + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float row[kSquare], column[kSquare];
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        *reinterpret_cast<float4*>(row + s * 4) =
            *reinterpret_cast<const float4*>(&shared.row[stage][d][(s * kSide + ty) * 4]);
        *reinterpret_cast<float4*>(column + s * 4) =
            *reinterpret_cast<const float4*>(&shared.column[stage][d][(s * kSide + tx) * 4]);
      }
#pragma unroll
      for (int r = 0; r < kSquare; ++r)
#pragma unroll
        for (int c = 0; c < kSquare; ++c) sum[r][c] = fmaf(row[r], column[c], sum[r][c]);
    }
    // The other stage was last read before the barrier of the round before.
    if (more) put(stage ^ 1);
    if (!more || (token + kDepth) % static_cast<int>(kMomentTokens) == 0) flush();
    __syncthreads();
  }
}

constexpr int kMagnitudeThreads = 64;

// A thread per channel, over all tokens in order.
__global__ void __launch_bounds__(kMagnitudeThreads)
    magnitudes_kernel(SecondMomentsParams p, double* sum_abs, float* max_abs) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const int channel = static_cast<int>(blockIdx.x) * kMagnitudeThreads + static_cast<int>(threadIdx.x);
  if (channel >= p.channels) return;
  double sum = p.add ? sum_abs[channel] : 0.0;
  float most = p.add ? max_abs[channel] : 0.0f;
  const float* x = p.x + channel;
#pragma unroll 16
  for (int t = 0; t < p.tokens; ++t, x += p.x_stride) {
    const float magnitude = fabsf(*x);
    sum += static_cast<double>(magnitude);
    most = fmaxf(most, magnitude);
  }
  sum_abs[channel] = sum;
  max_abs[channel] = most;
}

template <int kSquare>
Status start(SecondMomentsParams params, ExecContext& exec) {
  constexpr int kTile = kSquare * kSide;
  params.tiles = (params.channels + kTile - 1) / kTile;
  Launch how(dim3(static_cast<unsigned>(params.tiles * (params.tiles + 1) / 2)), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, second_moments_kernel<kSquare>, params);
}

}  // namespace

Status second_moments_sm90(const SecondMomentsArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  constexpr int64_t kMost = int64_t{1} << 20;
  if (args.x.rows() > kMost || args.x.cols() > kMost)
    return invalid_argument("second_moments: x is {}, wanted at most {} tokens and channels", to_string(args.x.shape),
                            kMost);
  if (args.x.rows() == 0 && args.add) return {};
  const SecondMomentsParams params{static_cast<const float*>(args.x.data),
                                   static_cast<double*>(args.sums.data),
                                   args.x.row_stride,
                                   args.sums.row_stride,
                                   static_cast<int>(args.x.cols()),
                                   static_cast<int>(args.x.rows()),
                                   0,
                                   args.add};
  // Small tiles where large ones would leave multiprocessors idle; the sums are the same.
  constexpr int64_t kManyChannels = 2048;
  HEARTH_TRY(args.x.cols() >= kManyChannels ? start<8>(params, exec) : start<4>(params, exec));
  Launch how(dim3(static_cast<unsigned>((params.channels + kMagnitudeThreads - 1) / kMagnitudeThreads)),
             dim3(kMagnitudeThreads), exec.stream);
  how.pdl = true;
  return launch(how, magnitudes_kernel, params, static_cast<double*>(args.sum_abs.data),
                static_cast<float*>(args.max_abs.data));
}

}  // namespace hearth
