// SPDX-License-Identifier: Apache-2.0
// Test support: which GPUs a process really uses.
#pragma once

#include "hearth/base/result.h"

namespace hearth {

// Whether this process has a context on a GPU, which costs some hundred MB there. Only once it has one on its own.
Result<bool> has_cuda_context_for_test(int device);

}  // namespace hearth
