// SPDX-License-Identifier: Apache-2.0
// CUDA runtime errors as values. Out of memory is ResourceExhausted, a missing driver or device is
// Unavailable, an error after which the process cannot use the device any more is DeviceLost, what our
// own arguments caused is Internal. Any thread. Builds without CUDA do not have this.
#pragma once

#include "hearth/base/result.h"

namespace hearth {

// The Error of a cudaError_t other than cudaSuccess; `what` is the call that gave it. Clears the runtime's
// note of the error, where it can be cleared, so that the next check does not find it again.
Error cuda_error(int code, const char* what, SourceLoc where = SourceLoc::current());

}  // namespace hearth

// Returns the error of a CUDA runtime call from the enclosing function, with this line.
#define HEARTH_CUDA_TRY(call)                                                            \
  do {                                                                                   \
    if (const int hearth_code_ = static_cast<int>(call); hearth_code_ != 0) [[unlikely]] \
      return ::hearth::cuda_error(hearth_code_, #call, ::hearth::SourceLoc::current());  \
  } while (false)
