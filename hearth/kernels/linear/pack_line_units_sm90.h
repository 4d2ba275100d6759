// SPDX-License-Identifier: Apache-2.0
// Packs weights of bitvectors on a GPU into units (line_units.h): the bits of pack_line_units_ref(). Host side; device
// pointers throughout.
#pragma once

#include <cstddef>

#include "hearth/base/result.h"
#include "hearth/tensor/weight_format.h"

namespace hearth::sm90 {

// From `weight` in canonical form to `units` [line_units_bytes()], 16-byte aligned, elsewhere.
// REQUIRES: has_line_units(weight.format, weight.k), no k_order.
Status pack_line_units(const LinearWeight& weight, std::byte* units, void* stream);

}  // namespace hearth::sm90
