// SPDX-License-Identifier: Apache-2.0
// Which units (a tile's 256 columns of K) of linear_nibble_wide_sm90.cuh a block multiplies, and in which order.
#pragma once

#include <algorithm>

#include "hearth/kernels/linear/linear_nibble_wide_tile.h"

namespace hearth::sm90 {

// How blocks share out the units of all tiles: those of the first `shared` tiles evenly, as StreamPlan, and tiles behind
// them in waves, a whole tile a block. Blocks of a wave have tiles that follow each other, so they read the same rows of W
// at the same time; by even shares alone each walks through rows of its own, which L2 does not keep until the next tile
// of tokens wants them. In 32 bits, for divisions in 64 are calls.
struct WidePlan {
  int chunks, blocks;
  int shared, whole;  // tiles; the shared ones come first
  int each, more;     // shared units of a block, and blocks that have one more

  WidePlan(int tiles, int chunks_of_tile, int most_blocks, bool in_waves) : chunks(chunks_of_tile) {
    if (fills_rounds(tiles, most_blocks)) {
      const int rounds = (tiles + most_blocks - 1) / most_blocks;
      blocks = (tiles + rounds - 1) / rounds, shared = 0;
    } else {
      blocks = std::min(tiles * chunks, most_blocks);
      // What is shared is one to two tiles of a block, so that few blocks share a tile.
      shared = in_waves ? tiles - std::max(tiles / blocks - 1, 0) * blocks : tiles;
    }
    whole = tiles - shared;
    each = shared * chunks / blocks, more = shared * chunks % blocks;
  }
  // The first shared unit of a block, and behind the last one of the block before.
  __device__ __forceinline__ int begin(int block) const { return block * each + min(block, more); }
  // Whole tiles of a block.
  __device__ __forceinline__ int waves(int block) const { return (whole + blocks - 1 - block) / blocks; }
  __device__ __forceinline__ int units(int block) const {
    return begin(block + 1) - begin(block) + waves(block) * chunks;
  }
};

// Chunks [first, last) of a tile. The block that has a tile's last chunk ends the tile: it adds up what blocks of lower
// numbers have of it.
struct WideSegment {
  int tile, first, last;
};

// The segments of a block: of its shared units the highest first, so that what others wait for is there early, then a
// tile of each wave. One number, which stays in a register while a segment is multiplied.
struct WideWork {
  int left;  // units

  __device__ __forceinline__ WideWork(const WidePlan& plan, int block) : left(plan.units(block)) {}
  __device__ __forceinline__ bool has_more() const { return left > 0; }
  __device__ __forceinline__ WideSegment here(const WidePlan& plan, int block) const {
    const int waves = plan.waves(block), shared = left - waves * plan.chunks;
    if (shared <= 0) return {plan.shared + (waves - left / plan.chunks) * plan.blocks + block, 0, plan.chunks};
    const int begin = plan.begin(block), end = begin + shared, tile = (end - 1) / plan.chunks;
    return {tile, max(begin - tile * plan.chunks, 0), end - tile * plan.chunks};
  }
  __device__ __forceinline__ void advance(const WideSegment& segment) { left -= segment.last - segment.first; }
};

}  // namespace hearth::sm90
