// SPDX-License-Identifier: Apache-2.0
// Weights of bitvectors in units (line_units.h) by more tokens than linear_lines_sm90.cuh takes, on the INT8 tensor
// cores. Host side; device pointers throughout.
//   I1. A group's sums are integers and exact, those of linear_lines_sm90.cuh. Groups are added in f32 in a fixed
//       order, which is another one.
//   I2. A row of out depends on its row of x alone, bit for bit, as long as one tile holds all rows, which the chosen
//       ones do up to 64: how K is cut depends on the weights and the device. With more rows it depends on their
//       number, too.
//   I3. A block waits for blocks of lower numbers only.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_lines_wide_tile.h"

namespace hearth::sm90 {

// Whether the kernel takes these weights, this x and this out; args are valid.
bool fits_lines_wide(const LinearArgs& args);
// Scratch for up to m rows of k columns.
int64_t lines_wide_workspace_bytes(int64_t m, int64_t k);
// Starts the rounding of x and then the product with each weight. ResourceExhausted for a smaller workspace. REQUIRES:
// at least one, fits_lines_wide() of each, all with the same x.
Status linear_lines_wide_sm90(std::span<const LinearArgs> parts, ExecContext& exec, LineTile tile = LineTile::kChosen);

}  // namespace hearth::sm90
