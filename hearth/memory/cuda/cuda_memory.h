// SPDX-License-Identifier: Apache-2.0
// The memory of the current GPU behind the interface of memory.h. Builds with CUDA only; any thread. Without a
// driver or a device every call is Unavailable.
#pragma once

#include "hearth/memory/memory.h"

namespace hearth {

const Memory& cuda_memory();

}  // namespace hearth
