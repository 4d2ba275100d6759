// SPDX-License-Identifier: Apache-2.0
// How silu_mul_sm90 shares out rows that it also rounds to E4M3: host code without CUDA, for the kernel, the selector
// and the tests. The choice is one of speed: all give the same bits.
#pragma once

#include <cstdint>
#include <iterator>

#include "hearth/kernels/silu_mul/silu_mul.h"

namespace hearth::sm90 {

// A row is `blocks` neighbouring blocks (a cluster, which agrees on the largest magnitude in shared memory) of
// `threads` threads with `vectors` vectors of 8 channels each at most, held in registers between the maximum and the
// rounding. vectors = 0: any width and alignment, channel by channel, computed twice.
struct SiluRoundConfig {
  int blocks, threads, vectors;

  constexpr int64_t max_vectors() const { return int64_t{blocks} * threads * vectors; }
  friend bool operator==(const SiluRoundConfig&, const SiluRoundConfig&) = default;
};

inline constexpr SiluRoundConfig kSiluRoundConfigs[] = {
    {8, 256, 1},   // few tokens, to 16,384: 14,336 exponentials are a microsecond of one multiprocessor
    {8, 256, 2},   // to 32,768: Llama-3-70B
    {1, 1024, 2},  // up to a row a multiprocessor: docs/kernels/rows-sm90.md
    {1, 512, 4},   // many tokens, to 16,384: no barrier across blocks
    {1, 256, 0},   // the rest
};
inline constexpr int kSiluRoundConfigCount = static_cast<int>(std::size(kSiluRoundConfigs));

// Index into kSiluRoundConfigs. REQUIRES: validate(args), args.rounded.
int select_silu_round_config(const SiluMulArgs& args, int multiprocessors);

}  // namespace hearth::sm90
