// SPDX-License-Identifier: Apache-2.0
// Which tile linear_lines_wide_sm90.h multiplies weights of bitvectors with. Host code without CUDA.
#pragma once

#include <cstdint>

namespace hearth::sm90 {

// Rows of W by tokens. kChosen: choose_line_tile(); others are for benchmarks and tests.
enum class LineTile { kChosen, k128x32, k128x64, k128x128 };

// The least that holds the tokens: a larger one multiplies zeros, a smaller one decodes W twice, and up to 64 tokens a
// row's bits would then depend on how many there are.
constexpr LineTile choose_line_tile(int64_t tokens) {
  return tokens <= 32 ? LineTile::k128x32 : tokens <= 64 ? LineTile::k128x64 : LineTile::k128x128;
}

}  // namespace hearth::sm90
