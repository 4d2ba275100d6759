// SPDX-License-Identifier: Apache-2.0
// Which instruction sets our Highway code is compiled for. Included before <hwy/highway.h>, never after:
// the baseline SSE2 and SSSE3 copies would only cost build time and size (a CPU without AVX2 runs SSE4
// or the baseline that the compiler targets).
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
