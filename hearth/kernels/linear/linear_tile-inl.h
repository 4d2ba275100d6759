// SPDX-License-Identifier: Apache-2.0
// What the CPU's linear kernels share: the register tile over a panel of widened weights, the tree that adds lanes, and
// the epilogue. Vector lanes run along k. The order of additions is the kernels' invariant I1 (linear_cpu.cpp).
// Included once per instruction set, from files that foreach_target.h includes again; after <hwy/highway.h>.
#if defined(HEARTH_KERNELS_LINEAR_LINEAR_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_LINEAR_LINEAR_TILE_INL_H_
#undef HEARTH_KERNELS_LINEAR_LINEAR_TILE_INL_H_
#else
#define HEARTH_KERNELS_LINEAR_LINEAR_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "hearth/kernels/linear/linear_cpu_plan.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace lp = linear_plan;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());

// ---- Sums ---------------------------------------------------------------------------------------------

#if HWY_TARGET != HWY_SCALAR
// The sum of the 128-bit blocks of v.
template <class DV, class VV>
HWY_INLINE auto fold_to_block(DV, VV v) {
  if constexpr (hn::MaxLanes(DV()) <= 4) {
    return v;
  } else {
    const hn::Half<DV> half;
    return fold_to_block(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

#endif

// sums[r] (+)= the lanes of acc[r], r < 4, by one tree.
HWY_INLINE void add_lanes(V a, V b, V c, V e, bool first_block, float* sums) {
#if HWY_TARGET == HWY_SCALAR
  const V lanes[4] = {a, b, c, e};
  for (int r = 0; r < 4; ++r) sums[r] = first_block ? hn::GetLane(lanes[r]) : sums[r] + hn::GetLane(lanes[r]);
#else
  const hn::Repartition<double, D> dd;
  const auto ab = hn::BitCast(dd, hn::Add(hn::InterleaveLower(D(), a, b), hn::InterleaveUpper(D(), a, b)));
  const auto ce = hn::BitCast(dd, hn::Add(hn::InterleaveLower(D(), c, e), hn::InterleaveUpper(D(), c, e)));
  const V abce =
      hn::Add(hn::BitCast(D(), hn::InterleaveLower(dd, ab, ce)), hn::BitCast(D(), hn::InterleaveUpper(dd, ab, ce)));
  const hn::CappedTag<float, 4> d4;
  auto sum = fold_to_block(D(), abce);
  if (!first_block) sum = hn::Add(hn::LoadU(d4, sums), sum);
  hn::StoreU(sum, d4, sums);
#endif
}

// Adds the products of one block of k of 4 rows and kTokens tokens to sums [kTokens][stride]. The rows are widened,
// [vector][row][lane]; x is packed, [vector][token][lane].
template <int kTokens>
HWY_INLINE void tile_panel(const float* panel, const float* x, int64_t vectors, bool first_block, float* sums,
                           int64_t stride) {
  V acc[4][kTokens];
  for (auto& row : acc)
    for (V& v : row) v = hn::Zero(D());
  for (int64_t i = 0; i < vectors; ++i, x += kTokens * kLanes, panel += 4 * kLanes) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      const V w = hn::Load(D(), panel + r * kLanes);
      HWY_UNROLL(6)
      for (int t = 0; t < kTokens; ++t) acc[r][t] = hn::MulAdd(w, hn::Load(D(), x + t * kLanes), acc[r][t]);
    }
  }
  HWY_UNROLL(6)
  for (int t = 0; t < kTokens; ++t)
    add_lanes(acc[0][t], acc[1][t], acc[2][t], acc[3][t], first_block, sums + t * stride);
}

// ---- Epilogue -----------------------------------------------------------------------------------------

template <class T>
void add_to(float* HWY_RESTRICT sums, const void* from, int64_t offset, int64_t count) {
  const T* HWY_RESTRICT values = static_cast<const T*>(from) + offset;
  for (int64_t i = 0; i < count; ++i) sums[i] += to_float(values[i]);
}

inline void add_to(float* sums, DType dtype, const void* from, int64_t offset, int64_t count) {
  if (dtype == DType::kF32) return add_to<float>(sums, from, offset, count);
  if (dtype == DType::kBf16) return add_to<bf16>(sums, from, offset, count);
  add_to<f16>(sums, from, offset, count);
}

// out[token][row ...] = sums + bias + residual for one token.
inline void finish(const lp::Job& job, float* HWY_RESTRICT sums, int64_t token, int64_t row, int64_t count) {
  if (job.bias != nullptr) add_to(sums, job.bias_type, job.bias, row, count);
  if (job.residual != nullptr) add_to(sums, job.out_type, job.residual, token * job.residual_stride + row, count);
  const int64_t offset = token * job.out_stride + row;
  if (job.out_type == DType::kF32) {
    std::memcpy(static_cast<float*>(job.out) + offset, sums, count * sizeof(float));
  } else {
    bf16* HWY_RESTRICT out = static_cast<bf16*>(job.out) + offset;
    for (int64_t i = 0; i < count; ++i) out[i] = bf16::from_float(sums[i]);
  }
}

// Tokens per register tile: 4 x 6 accumulators, 6 of x and 1 of W in 32 registers, 4 x 3 in 16.
constexpr int64_t kTileTokens = HWY_TARGET <= HWY_AVX3 ? 6 : 3;

// All rows of the panel with one tile of tokens.
template <int kTokens>
void multiply_panel(const float* panel, int64_t rows, const float* x, int64_t vectors, bool first_block, float* sums) {
  for (int64_t group = 0; group < rows; group += 4)
    tile_panel<kTokens>(panel + group * vectors * kLanes, x, vectors, first_block, sums + group, lp::kPanelRows);
}

inline void multiply_panel(int64_t tokens, const float* panel, int64_t rows, const float* x, int64_t vectors,
                           bool first_block, float* sums) {
  if (tokens == 1) return multiply_panel<1>(panel, rows, x, vectors, first_block, sums);
  if (tokens == 2) return multiply_panel<2>(panel, rows, x, vectors, first_block, sums);
  if (tokens == 3) return multiply_panel<3>(panel, rows, x, vectors, first_block, sums);
  if constexpr (kTileTokens == 6) {
    if (tokens == 4) return multiply_panel<4>(panel, rows, x, vectors, first_block, sums);
    if (tokens == 5) return multiply_panel<5>(panel, rows, x, vectors, first_block, sums);
    return multiply_panel<6>(panel, rows, x, vectors, first_block, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#endif  // toggle
