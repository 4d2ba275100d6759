// SPDX-License-Identifier: Apache-2.0
// The product of few tokens and 4-bit weights in units (nibble_units.h), at the speed at which these come from memory.
// Host side; device pointers throughout.
//   I1. A row of out depends on its row of x alone, bit for bit: sums have one order, whatever m is.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/linear/linear.h"

namespace hearth::sm90 {

inline constexpr int64_t kUnitsMostRows = 16;  // of x
inline constexpr int kUnitsMostParts = 3;      // weights with the same x in one launch: Q, K and V

// How much of W is asked for at once; what is 0 is chosen. For benchmarks.
struct UnitsRing {
  int piece = 0;  // units that a warp asks for in one go
  int slots = 0;  // pieces of a warp
};

// Whether the kernel takes this x and these weights: x in rows of whole 16-byte vectors, bf16 or rounded as the weights'
// format says; weights with units, of one format and k.
bool fits_units(std::span<const LinearArgs> parts);
// Whether bf16 rows of x are rounded to E4M3 by the kernel itself, without scratch memory.
bool units_round_x(int64_t m, int64_t k);
// x as it lies, or bf16 and units_round_x(). REQUIRES: fits_units(), 1 <= m <= kUnitsMostRows.
Status linear_units(std::span<const LinearArgs> parts, void* stream, UnitsRing ring = {});

}  // namespace hearth::sm90
