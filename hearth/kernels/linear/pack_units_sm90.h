// SPDX-License-Identifier: Apache-2.0
// Packs 4-bit weights on a GPU into units (nibble_units.h): the bits of pack_units_ref(). Host side; device pointers
// throughout.
#pragma once

#include <cstddef>

#include "hearth/base/result.h"
#include "hearth/tensor/weight_format.h"

namespace hearth::sm90 {

// From `weight` in canonical form to `units` [units_bytes()], 16-byte aligned, elsewhere.
// REQUIRES: has_units(weight.format, weight.k), no k_order.
Status pack_units(const LinearWeight& weight, std::byte* units, void* stream);

}  // namespace hearth::sm90
