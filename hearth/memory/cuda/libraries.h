// SPDX-License-Identifier: Apache-2.0
// The CUDA libraries that hearth does not link: opened when the first model needs them, Unavailable where
// they are missing. Any thread; a failed opening is tried again at the next call.
#pragma once

#include "hearth/base/result.h"
#include "hearth/base/shared_library.h"

namespace hearth {

// cuBLASLt 13 (dense BF16 and FP8 products).
Result<SharedLibrary> open_cublaslt();
// NCCL 2 (several GPUs).
Result<SharedLibrary> open_nccl();

}  // namespace hearth
