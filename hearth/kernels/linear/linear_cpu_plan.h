// SPDX-License-Identifier: Apache-2.0
// How the CPU's linear kernels cut their work: block sizes, the packed form of x, the scratch layout and the split over
// threads. The instruction-set specific code is in linear_tile-inl.h and the kernels' own files.
//   I1. The order in which products of one output are added depends on k and the weight's type alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hearth/kernels/linear/linear.h"
#include "hearth/tensor/dtype.h"

namespace hearth::linear_plan {

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Rows of W per register tile: their sums for one token fill one 128-bit vector.
inline constexpr int64_t kTileRows = 4;
// Up to this many tokens the weights are read once, as stored; more tokens share a widened panel.
inline constexpr int64_t kDirectTokens = 24;
// Borders between threads and blocks of tokens are multiples of this, and so of every register tile.
inline constexpr int64_t kTokenUnit = 6;
// k is cut into equal blocks of at most this many elements, each with a sum of its own.
inline constexpr int64_t kBlockK = 1024;
// Rows of W of a widened panel: 512 KiB of L2 with kBlockK. Fewer make packed x pass by more often.
inline constexpr int64_t kPanelRows = 128;
// Rows of W of a piece of the direct path, read as four streams a quarter apart. Not a power of two: 256
// lost 5 % at K = 2048, where streams would lie a multiple of 256 KiB apart (docs/kernels/linear-cpu.md).
inline constexpr int64_t kDirectRows = 240;
// How far ahead of its reads a stream asks for memory.
inline constexpr int64_t kPrefetchBytes = 1024;
// Most tokens whose packed x is kept at once: a multiple of kTokenUnit.
inline constexpr int64_t kBlockTokens = 516;
// Packed x is padded with zeros to this many elements of k: two of the widest vectors.
inline constexpr int64_t kPadK = 32;

// The blocks of k: all of `size` elements, a multiple of kPadK, but the last.
struct KBlocks {
  int64_t count = 0, size = 0;
  explicit constexpr KBlocks(int64_t k) : count(divide_up(k, kBlockK)) {
    if (count > 0) size = round_up(divide_up(k, count), kPadK);
  }
};

// Tokens of each block but the last: as equal as tiles allow, so that no block is too small to be worth
// widening the weights for.
constexpr int64_t token_block(int64_t m) {
  const int64_t blocks = divide_up(m, kBlockTokens);
  return blocks == 0 ? kTokenUnit : round_up(divide_up(m, blocks), kTokenUnit);
}

// One call, without views: what the kernels read.
struct Job {
  int64_t m = 0, n = 0, k = 0;
  DType x_type, weight_type, out_type, bias_type;
  const void* x = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;
  void* out = nullptr;
  int64_t x_stride = 0, weight_stride = 0, residual_stride = 0, out_stride = 0;
  KBlocks blocks{0};
  int64_t padded_k = 0;
};

inline Job make_job(const LinearArgs& args) {
  const LinearWeight& weight = *args.weight;
  return {.m = args.x.shape[0],
          .n = weight.n,
          .k = weight.k,
          .x_type = args.x.dtype,
          .weight_type = weight.codes.dtype,
          .out_type = args.out.dtype,
          .bias_type = weight.bias.dtype,
          .x = args.x.data,
          .weight = weight.codes.data,
          .bias = weight.bias.data,
          .residual = args.residual.data,
          .out = args.out.data,
          .x_stride = args.x.row_stride,
          .weight_stride = weight.codes.row_stride,
          .residual_stride = args.residual.row_stride,
          .out_stride = args.out.row_stride,
          .blocks = KBlocks(weight.k),
          .padded_k = round_up(weight.k, kPadK)};
}

// The job with tokens [begin, begin + count) only.
inline Job slice_tokens(const Job& job, int64_t begin, int64_t count) {
  Job slice = job;
  slice.m = count;
  slice.x = static_cast<const std::byte*>(job.x) + dtype_bytes(job.x_type, begin * job.x_stride);
  slice.out = static_cast<std::byte*>(job.out) + dtype_bytes(job.out_type, begin * job.out_stride);
  if (job.residual != nullptr)
    slice.residual =
        static_cast<const std::byte*>(job.residual) + dtype_bytes(job.out_type, begin * job.residual_stride);
  return slice;
}

// Bytes of packed x for `tokens` tokens.
constexpr int64_t packed_bytes(int64_t tokens, int64_t k) { return tokens * round_up(k, kPadK) * 4; }

// A piece of the workspace, whose parts are all multiples of 64 bytes.
inline float* as_floats(std::byte* scratch) { return static_cast<float*>(static_cast<void*>(scratch)); }

// Scratch of one thread of the direct path: x, the sums of kDirectRows rows and once more of one token.
constexpr int64_t direct_bytes(int64_t m, int64_t k) { return packed_bytes(m, k) + (m + 1) * kDirectRows * 4; }
// Scratch of one thread of the panel path: a panel and the sums of its rows.
constexpr int64_t panel_bytes(int64_t m) {
  return kPanelRows * kBlockK * 4 + std::min(m, kBlockTokens) * kPanelRows * 4;
}

// A split of rows and tokens over threads: rows x tokens <= threads, as even as tiles allow.
struct Grid {
  int64_t rows = 1, tokens = 1;
};
constexpr Grid split(int64_t m, int64_t n, int64_t threads) {
  const int64_t row_tiles = divide_up(n, kTileRows), token_tiles = divide_up(m, kTokenUnit);
  Grid best;
  int64_t best_cost = row_tiles * token_tiles;
  // Fewest cuts of the tokens first: each cut widens the weights once more.
  for (int64_t tokens = 1; tokens <= threads; ++tokens) {
    const int64_t rows = threads / tokens;
    const int64_t cost = divide_up(row_tiles, rows) * divide_up(token_tiles, tokens);
    if (cost < best_cost) best = {rows, tokens}, best_cost = cost;
  }
  return best;
}

// Part `index` of [0, count) cut into `parts` at multiples of `unit`.
struct Range {
  int64_t begin = 0, end = 0;
};
constexpr Range part(int64_t count, int64_t unit, int64_t parts, int64_t index) {
  const int64_t units = divide_up(count, unit);
  return {std::min(count, units * index / parts * unit), std::min(count, units * (index + 1) / parts * unit)};
}

}  // namespace hearth::linear_plan
