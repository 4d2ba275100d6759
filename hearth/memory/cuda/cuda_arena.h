// SPDX-License-Identifier: Apache-2.0
// The pages of the chosen GPU, by the driver's virtual memory management. Driver entry points are looked up when the
// first page is wanted. Builds with CUDA only.
#pragma once

#include "hearth/memory/page_arena.h"

namespace hearth {

// The process's only one, over cuda_device().
PageArena& cuda_arena();

}  // namespace hearth
