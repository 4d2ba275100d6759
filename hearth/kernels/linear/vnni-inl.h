// SPDX-License-Identifier: Apache-2.0
// HEARTH_VNNI: 1 where AVX-512's dot products of integers may be used. Highway asks the CPU for them before it chooses
// AVX3_DL, but does not switch them on. Included without guard, right after HWY_BEFORE_NAMESPACE(), whose end
// switches them off again; makes no declarations.
#undef HEARTH_VNNI
#if HWY_TARGET == HWY_AVX3_DL && defined(__GNUC__) && !defined(__clang__)
#define HEARTH_VNNI 1
#pragma GCC target("avx512vnni")
#else
#define HEARTH_VNNI 0
#endif
