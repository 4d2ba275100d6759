// SPDX-License-Identifier: Apache-2.0
// The tiles of the linear layer on CUDA cores (linear_tile_sm90.cuh) and which of them a product takes. The choice is
// one of speed: all give the same bits. Pure functions.
#pragma once

#include <cstdint>

namespace hearth {

struct TileShape {
  int rows, cols, depth;  // of out, and how much of K at once
  int side;               // a thread has side x side outputs
  int lanes_across;       // threads of a warp beside each other

  constexpr int threads() const { return rows * cols / (side * side); }
  // Blocks that fit into a multiprocessor's registers: 128 for each thread, 255 where groups have sums of their own.
  constexpr int blocks(bool groups) const { return (groups ? 256 : 512) / threads(); }
};

// Decode: a few tokens; one output per thread, a warp in one row, so that rows that are not there cost nothing.
enum class TileSize { kDecode, kMedium, kLarge };

constexpr TileShape tile_shape(TileSize size) {
  switch (size) {
    case TileSize::kDecode: return {8, 32, 128, 1, 32};
    case TileSize::kMedium: return {64, 32, 32, 4, 8};
    default: return {128, 128, 16, 8, 8};
  }
}

// Large tiles have the best ratio of sums to loads, where they fill the two places of most multiprocessors: three
// quarters of them.
constexpr TileSize choose_tile(int64_t m, int64_t n, int64_t multiprocessors) {
  if (m <= 16) return TileSize::kDecode;
  constexpr TileShape kLarge = tile_shape(TileSize::kLarge);
  const int64_t large = (m + kLarge.rows - 1) / kLarge.rows * ((n + kLarge.cols - 1) / kLarge.cols);
  return 2 * large < 3 * multiprocessors ? TileSize::kMedium : TileSize::kLarge;
}

}  // namespace hearth
