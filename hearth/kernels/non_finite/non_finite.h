// SPDX-License-Identifier: Apache-2.0
// Whether values are numbers, asked where they lie: what the quantizer refuses to go on with.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/shape.h"

namespace hearth {

// An element that is NaN or infinite: its index, row after row, and what it is, in one number. Smaller is earlier.
struct NonFinite {
  static constexpr uint64_t kNone = ~uint64_t{0};

  static constexpr uint64_t encode(int64_t index, uint32_t bits) {
    return static_cast<uint64_t>(index) << 2 | bits >> 31 << 1 | ((bits & 0x7FFFFF) != 0 ? 1 : 0);
  }
  static constexpr int64_t index(uint64_t code) { return static_cast<int64_t>(code >> 2); }
  static constexpr float value(uint64_t code) {
    const float magnitude =
        (code & 1) != 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    return (code & 2) != 0 ? -magnitude : magnitude;
  }
};

// *first = min(*first, the NonFinite of the first such element of x); as it was where all are numbers.
//   x [rows, cols] f32;  first, in the memory of the table: kNone at the start, by the caller
// Errors: InvalidArgument for a shape or type.
struct NonFiniteArgs {
  ConstTensorView x;
  uint64_t* first = nullptr;
};

Status validate(const NonFiniteArgs& args);
Status non_finite_ref(const NonFiniteArgs& args, ExecContext& exec);
Status non_finite_cpu(const NonFiniteArgs& args, ExecContext& exec);
// Builds with CUDA only. x and first in device memory; runs in exec.stream.
Status non_finite_sm90(const NonFiniteArgs& args, ExecContext& exec);

}  // namespace hearth
