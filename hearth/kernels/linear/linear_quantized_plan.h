// SPDX-License-Identifier: Apache-2.0
// How linear_quantized_cpu cuts its work: the sizes of its scratch, and the job that its kernels read. As in
// linear_cpu_plan.h, but k is cut at multiples of 128, the columns of one 64-byte vector of 4-bit codes.
#pragma once

#include "hearth/kernels/linear/linear_cpu_plan.h"
#include "hearth/kernels/linear/quantized_reader.h"

namespace hearth::quantized_plan {

namespace lp = linear_plan;

inline constexpr int64_t kPadK = 128;
static_assert(lp::kBlockK % kPadK == 0);
// Up to this many tokens the weights are decoded in registers; more tokens share a decoded panel.
inline constexpr int64_t kDirectTokens = 12;

constexpr int64_t padded(int64_t k) { return lp::round_up(k, kPadK); }
constexpr lp::KBlocks blocks_of(int64_t k) {
  lp::KBlocks blocks(k);
  blocks.size = padded(blocks.size);
  return blocks;
}
// Floats of one row's scales (or zero points): groups are at least 8 wide where they are kept, and a vector may be read
// from any of them.
constexpr int64_t row_scale_floats(int64_t k) { return padded(k) / 8 + 16; }
// The last codes of W, where vectors would be read beyond its end: two units of 64 bytes and 3 bytes.
inline constexpr int64_t kTailFloats = 48;
// What a row of W needs: scales, zero points, a tail.
constexpr int64_t row_scratch_floats(int64_t k) { return 2 * row_scale_floats(k) + kTailFloats; }

// Floats of packed x of one token: its columns and, for kI8PerGroup, its scales for 8 columns each.
constexpr int64_t packed_floats(int64_t k) { return padded(k) / 8 * 9; }
// Scratch of packing: a row in column order, and its groups' scales.
constexpr int64_t row_floats(int64_t k) { return padded(k) + row_scale_floats(k); }
constexpr int64_t token_scale_floats(int64_t m) { return lp::round_up(m, 16); }

// A thread of the direct path: packed x, its scales, a row, scales and zero points of 4 rows of W, sums.
constexpr int64_t direct_bytes(int64_t m, int64_t k) {
  return 4 * (m * packed_floats(k) + token_scale_floats(m) + row_floats(k) + 4 * row_scratch_floats(k) +
              (m + 1) * lp::kDirectRows);
}
// Shared by the threads of the panel path: packed x and its scales.
constexpr int64_t packed_bytes(int64_t tokens, int64_t k) {
  return 4 * (tokens * packed_floats(k) + token_scale_floats(tokens));
}
// A thread of the panel path: a row of x, scales and zero points of a row of W, a panel, sums.
constexpr int64_t panel_bytes(int64_t m, int64_t k) {
  return 4 * (row_floats(k) + row_scratch_floats(k) + lp::kPanelRows * lp::kBlockK / 8 * 9 +
              std::min(m, lp::kBlockTokens) * lp::kPanelRows);
}

// One call: what the kernels read.
struct Job {
  lp::Job tile;  // blocks and padded_k are those of this file
  const LinearWeight* weight = nullptr;
  const QuantizedReader* reader = nullptr;
  ActFormat act = ActFormat::kNative;
  int64_t row_bytes = 0;  // of codes
  int64_t group = 0;      // columns that share a scale; padded_k where all do
};

}  // namespace hearth::quantized_plan
