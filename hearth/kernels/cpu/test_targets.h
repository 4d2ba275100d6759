// SPDX-License-Identifier: Apache-2.0
// Test support: runs a test once for every instruction set that Highway dispatches to on this machine.
// Each .cpp with HWY_DYNAMIC_DISPATCH obeys the choice. Not thread-safe; used by op tests only.
#pragma once

#include <gtest/gtest.h>

#include "hearth/base/function_ref.h"
#include "hearth/kernels/cpu/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

namespace hearth {

inline void for_each_cpu_target(FunctionRef<void()> test) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    test();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace hearth
