// SPDX-License-Identifier: Apache-2.0
// Rows of x in the order in which 4-bit codes of W become fragments of wgmma (linear_nibble_fragments_sm90.cuh),
// rounded to E4M3 where they are multiplied so: the numbers and scales of quantize_act(), in other places. Host side;
// device pointers throughout.
#pragma once

#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/kernels/sm90/host_device.h"
#include "hearth/tensor/shape.h"

namespace hearth::sm90 {

inline constexpr int kFragmentGroup = 128;  // columns that are in another order

// A lane q of the four that share a row of W holds its columns 32 q to 32 q + 31 of a group, 8 of them in each of four
// words. Where those of a word lie in the product:
enum class FragmentOrder {
  kRuns,    // E4M3: 4 neighbours in a register, the first 4 and the last 4
  kParity,  // E4M3: the even ones in one register, the odd ones in another
  kHalves,  // bf16: pairs 4 apart
};

// The place in its group of column `column`.
HEARTH_HOST_DEVICE constexpr int fragment_slot(FragmentOrder order, int column) {
  const int q = column / 32, word = column % 32 / 8, at = column % 8;
  switch (order) {
    case FragmentOrder::kRuns: return 32 * word + 16 * (at / 4) + 4 * q + at % 4;
    case FragmentOrder::kParity: return 32 * word + 16 * (at % 2) + 4 * q + at / 2;
    default: return 32 * word + 16 * (at % 4 / 2) + 8 * (at % 2) + 2 * q + at / 4;
  }
}

struct ArrangeRows {
  ConstTensorView x;  // [m, k] bf16, 16-byte aligned rows, or e4m3, 8-byte aligned rows
  FragmentOrder order;
  const float* static_scale;  // kE4m3Static, or null
  void* out;                  // [m, k] e4m3, of kHalves bf16; dense, 16-byte aligned
  float* scale;               // [m], of a bf16 x that is rounded
};
// REQUIRES: m >= 1, k a multiple of kFragmentGroup; kHalves: x is bf16.
Status arrange_rows(const ArrangeRows& rows, void* stream);

}  // namespace hearth::sm90
