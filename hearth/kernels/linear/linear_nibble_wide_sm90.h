// SPDX-License-Identifier: Apache-2.0
// 4-bit weights in units (nibble_units.h) by more tokens than linear_units_sm90.h takes, on the tensor cores. Host side;
// device pointers throughout.
//   I1. A row of out depends on its row of x alone, bit for bit, as long as one tile holds all rows, which the chosen
//       ones do up to 64: how K is cut depends on the weights and the device. With more rows it depends on their
//       number, too.
//   I2. A block waits for blocks of lower numbers only.
#pragma once

#include <cstdint>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_nibble_wide_tile.h"

namespace hearth::sm90 {

inline constexpr int kWideTokens = 128;  // of a tile, at most

// Whether the kernel takes these weights, this x and this out; args are valid.
bool fits_nibble_wide(const LinearArgs& args);
// Scratch for up to m rows of k columns.
int64_t nibble_wide_workspace_bytes(int64_t m, int64_t n, int64_t k);
// Starts the rounding of x and the product. ResourceExhausted for a smaller workspace. REQUIRES: fits_nibble_wide().
// k64x64 is for E4M3, k192x128 for E4M3 and codes without zero points; k128x128 stands in for them.
Status linear_nibble_wide_sm90(const LinearArgs& args, ExecContext& exec, WideTile tile = WideTile::kChosen);

}  // namespace hearth::sm90
