// SPDX-License-Identifier: Apache-2.0
// Conversion of whole arrays between the floats that checkpoints hold and those that models compute in.
// Stateless: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "hearth/base/result.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

// Converts `src` [n] src_dtype to `dst` [n] dst_dtype, both any of f32, f16, bf16, dense, of any alignment,
// not overlapping. Rounds to nearest, ties to even; signed zeros, infinities and NaNs stay what they are;
// f16 overflows to infinity. Equal types copy bits. Unsupported for another dtype.
// REQUIRES: both spans hold the same whole number of elements.
Status convert_floats(DType src_dtype, std::span<const std::byte> src, DType dst_dtype, std::span<std::byte> dst);

// The index of the first element of `values` [n] dtype, dense, of any alignment, that is infinite or not a
// number. None for a dtype other than f32, f16, bf16 and e4m3: other codes are all numbers.
// REQUIRES: a whole number of elements.
std::optional<int64_t> find_non_finite(DType dtype, std::span<const std::byte> values);

}  // namespace hearth
