// SPDX-License-Identifier: Apache-2.0
// One tile of kRowTile rows of Compute's group loops. Tiles do not depend on each other.
#pragma once

#include "hearth/quantize/compute.h"

namespace hearth {

void fit_group_tile(const FitArgs& args, int64_t row);
void round_block_tile(const RoundArgs& args, int64_t row);
void refine_group_tile(const RefineArgs& args, int64_t row);
void assign_lines_tile(const AssignArgs& args, int64_t row);

}  // namespace hearth
