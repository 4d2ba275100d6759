// SPDX-License-Identifier: Apache-2.0
// Test support: loses the GPU for this process, as a bad kernel or broken hardware does. Only for a process of its own.
#pragma once

#include "hearth/base/result.h"

namespace hearth {

// Runs a kernel that traps, and waits for it. The error that this is: DeviceLost, as of every later call.
Status lose_cuda_device_for_test();

}  // namespace hearth
