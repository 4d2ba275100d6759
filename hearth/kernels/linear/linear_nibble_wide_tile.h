// SPDX-License-Identifier: Apache-2.0
// Which tile linear_nibble_wide_sm90.h multiplies 4-bit weights with. Host code without CUDA. The limits are where the
// times measured on an H100 cross (docs/kernels/linear-nibble-sm90.md).
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// Rows of W by tokens. kChosen: choose_wide_tile(); others are for benchmarks and tests.
enum class WideTile { kChosen, k128x32, k128x64, k128x128, k256x128 };

struct WideProblem {
  int64_t tokens, n;
  bool has_256_rows;  // the format has a kernel of k256x128
  int multiprocessors;
};

constexpr WideTile choose_wide_tile(const WideProblem& p) {
  const auto pieces = [](int64_t of, int64_t size) { return (of + size - 1) / size; };
  // The least that holds the tokens: a larger one multiplies zeros, a smaller one decodes W twice. (That pays where
  // n = k = 4096, by 1 us of 15 at 64 tokens, but then a row's bits would depend on how many there are.)
  if (p.tokens <= 32) return WideTile::k128x32;
  if (p.tokens <= 64) return WideTile::k128x64;
  // The same, but where several blocks share a tile of 128 rows: that they add up its sums takes longer than to decode
  // W twice. 45 and 35 us with 32 such tiles, 46 and 54 us with 224.
  if (p.tokens <= 128) return pieces(p.n, 128) < p.multiprocessors ? WideTile::k128x64 : WideTile::k128x128;
  // Reads a third less, and has fewer instructions: up to 13 % faster where every block has a tile of its own,
  // 2 % slower where two share one, 11 % where four do.
  const int64_t tiles = pieces(p.n, 256) * pieces(p.tokens, 128);
  return p.has_256_rows && 8 * tiles >= int64_t{7} * p.multiprocessors ? WideTile::k256x128 : WideTile::k128x128;
}

}  // namespace hearth::sm90
