// SPDX-License-Identifier: Apache-2.0
// Which instance of the Hopper kernel serves a row: one array that the kernel, the selector, the tests and
// the bench share. Host code without CUDA; constants only.
//   I1. The choice depends on the row's width, type and alignment, never on the number of rows: a row's
//       sum runs in the same order in every batch.
#pragma once

#include <cstdint>
#include <iterator>

#include "hearth/kernels/rmsnorm/rmsnorm.h"

namespace hearth::sm90 {

// A row is `row_threads * row_vectors` vectors of 16 bytes at most, held in registers between the sum and
// the result, so that it is read once. row_vectors = 0: any width and alignment, element by element, and
// read twice (the second time from L1 or L2).
struct RmsNormConfig {
  int row_threads;
  int row_vectors;
  int block_rows;
  bool f32_only = false;

  constexpr int threads() const { return row_threads * block_rows; }
  constexpr int64_t max_vectors() const { return int64_t{row_threads} * row_vectors; }
  friend bool operator==(const RmsNormConfig&, const RmsNormConfig&) = default;
};

// Ascending in width. A thread keeps two or four loads in flight and a multiprocessor over 1,000 threads,
// some 40 KiB: by Little's law what 3.35 TB/s at 600 ns wants of each of the 132 is 15 KiB.
inline constexpr RmsNormConfig kRmsNormConfigs[] = {
    {32, 1, 4},          // heads and toy models: a warp a row needs no shared memory
    {32, 4, 4},          // to 1,024 channels of bf16
    {128, 2, 1},         // to 2,048
    {256, 2, 1},         // to 4,096: Llama-3-8B
    {512, 2, 1},         // to 8,192: Llama-3-70B
    {1024, 2, 1},        // to 16,384; to 8,192 of f32
    {1024, 4, 1, true},  // to 16,384 of f32; with bf16, ptxas 13.0 spills 48 bytes and more
    {512, 0, 1},         // the rest
};

inline constexpr int kRmsNormConfigCount = static_cast<int>(std::size(kRmsNormConfigs));

// Index into kRmsNormConfigs. REQUIRES: validate(args).
int select_rmsnorm_config(const RmsNormArgs& args);

}  // namespace hearth::sm90
