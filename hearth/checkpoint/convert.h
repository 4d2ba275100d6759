// SPDX-License-Identifier: Apache-2.0
// Conversion of whole arrays between the floats that checkpoints hold and those that models compute in.
// Stateless: any thread.
#pragma once

#include <cstddef>
#include <span>

#include "hearth/base/result.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

// Converts `src` [n] src_dtype to `dst` [n] dst_dtype, both any of f32, f16, bf16, dense, of any alignment,
// not overlapping. Rounds to nearest, ties to even; signed zeros, infinities and NaNs stay what they are;
// f16 overflows to infinity. Equal types copy bits. Unsupported for another dtype.
// REQUIRES: both spans hold the same whole number of elements.
Status convert_floats(DType src_dtype, std::span<const std::byte> src, DType dst_dtype, std::span<std::byte> dst);

}  // namespace hearth
