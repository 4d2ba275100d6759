// SPDX-License-Identifier: Apache-2.0
// Which instruction sets our Highway code is compiled for. Included before <hwy/highway.h>, never after:
// the SSSE3 and SSE4 copies would only cost build time and size (a CPU without AVX2 runs the scalar copy:
// right, but slow).
#pragma once

// AVX3_DL is off unless asked for.
#define HWY_WANT_AVX3_DL
#if defined(__SANITIZE_THREAD__)
// What threads share does not depend on the instruction set: AVX2 and the scalar code stand for all.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#endif
