// SPDX-License-Identifier: Apache-2.0
// The product of up to 64 tokens with weights of E4M3, as linear_narrow_sm90.h has it for fewer, by the copy engine and
// wgmma. Host side; device pointers throughout.
//   I1. A row of out depends on its row of x alone, bit for bit: how K is cut depends on the weights of the launch and
//       the device.
//   I2. A block waits for blocks of lower numbers only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "hearth/kernels/linear/linear_narrow_sm90.h"
#include "hearth/kernels/sm90/host_device.h"

namespace hearth::sm90 {

inline constexpr int64_t kStreamMostTokens = 64;
inline constexpr int kStreamRows = 128;        // of W in a tile
inline constexpr int kStreamChunkBytes = 128;  // of a row that are copied at once
inline constexpr int kStreamMostBlocks = 512;

// How blocks share out W: its tiles, those of all parts one behind the other, each of `chunks` chunks of K, are a row
// of units that is cut into as many equal pieces as there are blocks.
struct StreamPlan {
  int tiles = 0, chunks = 0, blocks = 0;

  HEARTH_HOST_DEVICE constexpr int64_t units() const { return int64_t{tiles} * chunks; }
  // The first unit of a block, and behind the last one of the block before.
  HEARTH_HOST_DEVICE constexpr int64_t begin(int block) const { return units() * block / blocks; }
};

// Chunks [first, last) of a tile. The block that has a tile's last chunk ends the tile: it adds up what blocks of lower
// numbers have of it.
struct StreamSegment {
  int tile, first, last;
};
// A block works on its segments from the highest tile down: what others wait for comes first, and what it waits for
// has long been there.
HEARTH_HOST_DEVICE constexpr StreamSegment last_segment(int64_t begin, int64_t end, int chunks) {
  const int tile = static_cast<int>((end - 1) / chunks);
  const int64_t at = int64_t{tile} * chunks;
  return {tile, static_cast<int>(begin > at ? begin - at : 0), static_cast<int>(end - at)};
}

constexpr StreamPlan plan_linear_stream(const NarrowProduct& product, int multiprocessors) {
  StreamPlan plan;
  for (int i = 0; i < product.parts; ++i) plan.tiles += (product.part[i].n + kStreamRows - 1) / kStreamRows;
  plan.chunks = (product.row_bytes + kStreamChunkBytes - 1) / kStreamChunkBytes;
  plan.blocks = static_cast<int>(std::min<int64_t>(plan.units(), std::min(multiprocessors, kStreamMostBlocks)));
  return plan;
}

// As fits_narrow(), for any K: 16-byte vectors.
bool fits_stream(const ConstTensorView& x, const ConstTensorView& weight);
int64_t linear_stream_workspace_bytes();
// `counters` [kStreamMostBlocks], 0, are 0 again afterwards; null: the workspace has them. ResourceExhausted for a
// smaller workspace. REQUIRES: fits_stream of every part, 1 <= m <= kStreamMostTokens, n >= 1 of every part.
Status start_linear_stream(const NarrowProduct& product, std::span<std::byte> workspace, uint32_t* counters,
                           void* stream);

}  // namespace hearth::sm90
