// SPDX-License-Identifier: Apache-2.0
// Which tile linear_nibble_wide_sm90.h multiplies 4-bit weights with. Host code without CUDA. The limits are where the
// times measured on an H100 cross (docs/kernels/linear-nibble-sm90.md).
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// Rows of W by tokens. kChosen: choose_wide_tile(); others are for benchmarks and tests.
enum class WideTile { kChosen, k128x32, k128x64, k64x64, k128x128, k192x128 };

// Whether whole tiles, one for each multiprocessor at a time, leave one of ten or fewer of them idle. Then no tile is
// shared: to add up its sums takes longer.
constexpr bool fills_rounds(int64_t tiles, int64_t multiprocessors) {
  const int64_t rounds = (tiles + multiprocessors - 1) / multiprocessors;
  return 9 * rounds * multiprocessors <= 10 * tiles;
}

struct WideProblem {
  int64_t tokens, n, k;
  bool is_e4m3, has_zeros;  // activations; codes of kU4
  int multiprocessors;
};

constexpr WideTile choose_wide_tile(const WideProblem& p) {
  const auto pieces = [](int64_t of, int64_t size) { return (of + size - 1) / size; };
  // The least that holds the tokens: a larger one multiplies zeros, a smaller one decodes W twice. (That pays where
  // n = k = 4096, by 1 us of 15 at 64 tokens, but then a row's bits would depend on how many there are.)
  if (p.tokens <= 32) return WideTile::k128x32;
  if (p.tokens <= 64) return WideTile::k128x64;
  // Where they are just enough, tiles that nobody shares: n = k = 4096 14.1 us by 15.7 of 128x64 with 128 tokens, 18.8
  // by 22.2 of 128x128 with 256. With k = 14336 W is decoded twice for too long: 36.3 and 32.4 us, 51.4 and 47.8.
  const int64_t token_tiles = pieces(p.tokens, 64);
  if (p.k <= 8192 && pieces(p.n, 64) * token_tiles <= p.multiprocessors &&
      fills_rounds(pieces(p.n, 64) * token_tiles, p.multiprocessors) && p.is_e4m3)
    return WideTile::k64x64;
  if (p.k <= 8192 && pieces(p.n, 128) * token_tiles <= p.multiprocessors &&
      fills_rounds(pieces(p.n, 128) * token_tiles, p.multiprocessors) && p.is_e4m3)
    return WideTile::k128x64;
  const bool has_many_rows = pieces(p.n, 128) >= p.multiprocessors;
  // Where several blocks share a tile of 128 rows, that they add up its sums takes longer than to decode W twice: 36.8
  // and 30.2 us with 32 such tiles.
  if (p.tokens <= 128 && !has_many_rows) return WideTile::k128x64;
  // 3 to 8 % faster than 128x128 with n = 28672; with n = 4096, 22 tiles of rows instead of 32, 10 % slower.
  const bool fills = fills_rounds(pieces(p.n, 192) * pieces(p.tokens, 128), p.multiprocessors);
  return p.is_e4m3 && !p.has_zeros && (has_many_rows || fills) ? WideTile::k192x128 : WideTile::k128x128;
}

}  // namespace hearth::sm90
