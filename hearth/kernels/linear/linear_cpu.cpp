// SPDX-License-Identifier: Apache-2.0
// The linear layer on the CPU for f32, bf16 and f16 weights, read as stored. Vector lanes run along k;
// docs/kernels/linear-cpu.md tells why and what it reaches.
//   I1. For one output: lane j of one accumulator adds its products of a block of k in order with fused
//       multiply-adds, a fixed tree adds the lanes, blocks are added in order, then bias, then residual.
//       Both paths and every tile do exactly this, so a row of out depends on its row of x alone.
//   I2. No read beyond the last element of a row of x or W.
// Runs on the threads of exec.pool; each has its own part of the workspace.
#include "hearth/kernels/linear/linear.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "hearth/kernels/linear/linear_cpu_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/linear/linear_cpu.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "hearth/kernels/linear/linear_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace lp = linear_plan;

// Elements of k of one step: two vectors.
constexpr int64_t kStep = 2 * kLanes;
static_assert(lp::kPadK % kStep == 0 && lp::kTileRows == 4);

// How kStep consecutive elements become two vectors of f32. bf16 gives the even and the odd elements: a
// shift and a mask per 32 bits instead of two widening shuffles. x is packed in the same order.
struct AsF32 {
  using T = float;
  static HWY_INLINE void load(const T* from, V& first, V& second) {
    first = hn::LoadU(D(), from);
    second = hn::LoadU(D(), from + kLanes);
  }
};
struct AsBf16 {
  using T = bf16;
  static HWY_INLINE void load(const T* from, V& even, V& odd) {
#if HWY_TARGET == HWY_SCALAR
    even = hn::Set(D(), from[0].to_float());
    odd = hn::Set(D(), from[1].to_float());
#else
    const hn::RebindToUnsigned<D> du;
    const auto words =
        hn::BitCast(du, hn::LoadU(hn::Repartition<uint16_t, D>(), reinterpret_cast<const uint16_t*>(from)));
    even = hn::BitCast(D(), hn::ShiftLeft<16>(words));
    odd = hn::BitCast(D(), hn::And(words, hn::Set(du, 0xFFFF0000u)));
#endif
  }
};
struct AsBf16InOrder {
  using T = bf16;
  static HWY_INLINE void load(const T* from, V& first, V& second) {
    const hn::Rebind<hwy::bfloat16_t, D> dh;
    const auto* halves = reinterpret_cast<const hwy::bfloat16_t*>(from);
    first = hn::PromoteTo(D(), hn::LoadU(dh, halves));
    second = hn::PromoteTo(D(), hn::LoadU(dh, halves + kLanes));
  }
};
struct AsF16 {
  using T = f16;
  static HWY_INLINE void load(const T* from, V& first, V& second) {
    const hn::Rebind<hwy::float16_t, D> dh;
    const auto* halves = reinterpret_cast<const hwy::float16_t*>(from);
    first = hn::PromoteTo(D(), hn::LoadU(dh, halves));
    second = hn::PromoteTo(D(), hn::LoadU(dh, halves + kLanes));
  }
};

// As AsX::load of `count` < kStep elements followed by zeros.
template <class As>
HWY_INLINE void load_tail(const typename As::T* from, int64_t count, V& first, V& second) {
  typename As::T padded[kStep] = {};
  std::memcpy(padded, from, count * sizeof(padded[0]));
  As::load(padded, first, second);
}

// ---- Packing x ----------------------------------------------------------------------------------------
// Tokens [begin, begin + count) become [block of k][vector][token][lane], f32, in the weight's order.

template <class Weight, class X>
void pack_tile(const lp::Job& job, int64_t begin, int64_t count, float* packed) {
  [[maybe_unused]] constexpr bool kSplit = std::is_same_v<Weight, AsBf16> && !std::is_same_v<X, AsBf16>;
  if (job.k == 0) return;
  const auto* x = static_cast<const typename X::T*>(job.x);
  for (int64_t token = 0; token < count; ++token) {
    const auto* row = x + (begin + token) * job.x_stride;
    float* to = packed + token * kLanes;
    for (int64_t k = 0; k < job.k; k += kStep, to += 2 * count * kLanes) {
      V first, second;
      if (k + kStep <= job.k) {
        X::load(row + k, first, second);
      } else {
        load_tail<X>(row + k, job.k - k, first, second);
      }
#if HWY_TARGET != HWY_SCALAR
      if constexpr (kSplit) {
        const V even = hn::ConcatEven(D(), second, first);
        second = hn::ConcatOdd(D(), second, first);
        first = even;
      }
#endif
      hn::Store(first, D(), to);
      hn::Store(second, D(), to + count * kLanes);
    }
  }
}

template <class Weight>
void pack_tile(const lp::Job& job, int64_t begin, int64_t count, float* packed) {
  using Bf16X = std::conditional_t<std::is_same_v<Weight, AsBf16>, AsBf16, AsBf16InOrder>;
  if (job.x_type == DType::kBf16) return pack_tile<Weight, Bf16X>(job, begin, count, packed);
  return pack_tile<Weight, AsF32>(job, begin, count, packed);
}

// Adds the products of one block of k of 4 rows and kTokens tokens to sums [kTokens][stride].
// Direct: the rows as stored.
template <class Weight, int kTokens>
HWY_INLINE void tile_direct(const typename Weight::T* const (&rows)[4], const float* x, int64_t length,
                            bool first_block, float* sums, int64_t stride) {
  constexpr int64_t kAhead = lp::kPrefetchBytes / sizeof(typename Weight::T);
  V acc[4][kTokens];
  for (auto& row : acc)
    for (V& v : row) v = hn::Zero(D());
  int64_t k = 0;
  for (; k + kStep <= length; k += kStep, x += 2 * kTokens * kLanes) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      V first, second;
      hwy::Prefetch(rows[r] + k + kAhead);
      if constexpr (kStep * sizeof(typename Weight::T) > 64) hwy::Prefetch(rows[r] + k + kAhead + kLanes);
      Weight::load(rows[r] + k, first, second);
      HWY_UNROLL(6)
      for (int t = 0; t < kTokens; ++t) acc[r][t] = hn::MulAdd(first, hn::Load(D(), x + t * kLanes), acc[r][t]);
      HWY_UNROLL(6)
      for (int t = 0; t < kTokens; ++t)
        acc[r][t] = hn::MulAdd(second, hn::Load(D(), x + (kTokens + t) * kLanes), acc[r][t]);
    }
  }
  if (k < length) {
    for (int r = 0; r < 4; ++r) {
      V first, second;
      load_tail<Weight>(rows[r] + k, length - k, first, second);
      for (int t = 0; t < kTokens; ++t) {
        acc[r][t] = hn::MulAdd(first, hn::Load(D(), x + t * kLanes), acc[r][t]);
        acc[r][t] = hn::MulAdd(second, hn::Load(D(), x + (kTokens + t) * kLanes), acc[r][t]);
      }
    }
  }
  HWY_UNROLL(6)
  for (int t = 0; t < kTokens; ++t)
    add_lanes(acc[0][t], acc[1][t], acc[2][t], acc[3][t], first_block, sums + t * stride);
}

// ---- Direct path: at most kDirectTokens tokens ----------------------------------------------------------

template <class Weight>
HWY_INLINE void tile_direct(int64_t tokens, const typename Weight::T* const (&rows)[4], const float* x, int64_t length,
                            bool first_block, float* sums) {
  constexpr int64_t kStride = lp::kDirectRows;
  if (tokens == 1) return tile_direct<Weight, 1>(rows, x, length, first_block, sums, kStride);
  if (tokens == 2) return tile_direct<Weight, 2>(rows, x, length, first_block, sums, kStride);
  if (tokens == 3) return tile_direct<Weight, 3>(rows, x, length, first_block, sums, kStride);
  if constexpr (kTileTokens == 6) {
    if (tokens == 4) return tile_direct<Weight, 4>(rows, x, length, first_block, sums, kStride);
    if (tokens == 5) return tile_direct<Weight, 5>(rows, x, length, first_block, sums, kStride);
    return tile_direct<Weight, 6>(rows, x, length, first_block, sums, kStride);
  }
}

// A tile's rows are a quarter of a piece apart: four streams that each run through memory in order.
template <class Weight>
void direct(const lp::Job& job, lp::Range rows, std::byte* scratch) {
  auto* x = lp::as_floats(scratch);
  float* tile_sums = x + job.m * job.padded_k;        // [token][row of a quarter][quarter]
  float* sums = tile_sums + job.m * lp::kDirectRows;  // [row], of one token
  const auto* weight = static_cast<const typename Weight::T*>(job.weight);
  for (int64_t token = 0; token < job.m; token += kTileTokens)
    pack_tile<Weight>(job, token, std::min(kTileTokens, job.m - token), x + token * job.padded_k);
  for (int64_t begin = rows.begin; begin < rows.end; begin += lp::kDirectRows) {
    const int64_t count = std::min(lp::kDirectRows, rows.end - begin), quarter = lp::divide_up(count, 4);
    for (int64_t i = 0; i < quarter; ++i) {
      for (int64_t k = 0, block = 0; block < job.blocks.count; ++block, k += job.blocks.size) {
        const typename Weight::T* pointers[4];
        // Rows past the end repeat the last one; their sums are not used.
        for (int64_t r = 0; r < 4; ++r)
          pointers[r] = weight + (begin + std::min(r * quarter + i, count - 1)) * job.weight_stride + k;
        for (int64_t token = 0; token < job.m; token += kTileTokens) {
          const int64_t in_tile = std::min(kTileTokens, job.m - token);
          tile_direct<Weight>(in_tile, pointers, x + token * job.padded_k + k * in_tile,
                              std::min(job.blocks.size, job.k - k), block == 0,
                              tile_sums + token * lp::kDirectRows + 4 * i);
        }
      }
    }
    for (int64_t token = 0; token < job.m; ++token) {
      const float* of_token = tile_sums + token * lp::kDirectRows;
      for (int64_t r = 0; r < 4; ++r)
        for (int64_t i = 0; i < std::min(quarter, count - r * quarter); ++i)
          sums[r * quarter + i] = job.k == 0 ? 0.0f : of_token[4 * i + r];
      finish(job, sums, token, begin, count);
    }
  }
}

void direct_rows(const lp::Job& job, lp::Range rows, std::byte* scratch) {
  if (job.weight_type == DType::kF32) return direct<AsF32>(job, rows, scratch);
  if (job.weight_type == DType::kBf16) return direct<AsBf16>(job, rows, scratch);
  direct<AsF16>(job, rows, scratch);
}

// ---- Panel path -----------------------------------------------------------------------------------------

template <class Weight>
void fill_panel(const lp::Job& job, int64_t row, int64_t rows, int64_t k, int64_t length, float* panel) {
  const auto* weight = static_cast<const typename Weight::T*>(job.weight);
  const int64_t group_size = 4 * lp::round_up(length, kStep);
  for (int64_t r = 0; r < lp::round_up(rows, 4); ++r) {
    const auto* from = weight + (row + std::min(r, rows - 1)) * job.weight_stride + k;
    float* to = panel + r / 4 * group_size + r % 4 * kLanes;
    V first, second;
    int64_t i = 0;
    for (; i + kStep <= length; i += kStep, to += 8 * kLanes) {
      Weight::load(from + i, first, second);
      hn::Store(first, D(), to);
      hn::Store(second, D(), to + 4 * kLanes);
    }
    if (i < length) {
      load_tail<Weight>(from + i, length - i, first, second);
      hn::Store(first, D(), to);
      hn::Store(second, D(), to + 4 * kLanes);
    }
  }
}

void fill_panel(const lp::Job& job, int64_t row, int64_t rows, int64_t k, int64_t length, float* panel) {
  if (job.weight_type == DType::kF32) return fill_panel<AsF32>(job, row, rows, k, length, panel);
  if (job.weight_type == DType::kBf16) return fill_panel<AsBf16>(job, row, rows, k, length, panel);
  fill_panel<AsF16>(job, row, rows, k, length, panel);
}

// Packs the tokens of `range`, whose borders are multiples of the tile.
void pack_tokens(const lp::Job& job, lp::Range range, float* packed) {
  for (int64_t token = range.begin; token < range.end; token += kTileTokens) {
    const int64_t count = std::min(kTileTokens, range.end - token);
    float* to = packed + token * job.padded_k;
    if (job.weight_type == DType::kBf16) {
      pack_tile<AsBf16>(job, token, count, to);
    } else {
      pack_tile<AsF32>(job, token, count, to);
    }
  }
}

void panel_rows(const lp::Job& job, lp::Range rows, lp::Range tokens, const float* packed, std::byte* scratch) {
  auto* panel = lp::as_floats(scratch);
  float* sums = panel + lp::kPanelRows * lp::kBlockK;
  for (int64_t row = rows.begin; row < rows.end; row += lp::kPanelRows) {
    const int64_t count = std::min(lp::kPanelRows, rows.end - row);
    for (int64_t k = 0, block = 0; block < job.blocks.count; ++block, k += job.blocks.size) {
      const int64_t length = std::min(job.blocks.size, job.k - k);
      const int64_t vectors = lp::round_up(length, kStep) / kLanes;
      fill_panel(job, row, count, k, length, panel);
      for (int64_t token = tokens.begin; token < tokens.end; token += kTileTokens) {
        const int64_t in_tile = std::min(kTileTokens, tokens.end - token);
        multiply_panel(in_tile, panel, count, packed + token * job.padded_k + k * in_tile, vectors, block == 0,
                       sums + (token - tokens.begin) * lp::kPanelRows);
      }
    }
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      float* of_token = sums + (token - tokens.begin) * lp::kPanelRows;
      if (job.k == 0) std::memset(of_token, 0, count * sizeof(float));
      finish(job, of_token, token, row, count);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {

namespace lp = linear_plan;

HWY_EXPORT(direct_rows);
HWY_EXPORT(pack_tokens);
HWY_EXPORT(panel_rows);

// A thread is worth waking for this many products: a loop of the pool costs about a microsecond.
constexpr int64_t kProductsPerThread = 32768;

void run_direct(const lp::Job& job, int64_t threads, ExecContext& exec) {
  const int64_t bytes = lp::direct_bytes(job.m, job.k);
  const auto body = [&](int thread) {
    const lp::Range rows = lp::part(job.n, lp::kTileRows, threads, std::min<int64_t>(thread, threads));
    if (thread < threads && rows.begin < rows.end)
      HWY_DYNAMIC_DISPATCH(direct_rows)(job, rows, exec.workspace.data() + thread * bytes);
  };
  if (threads == 1) return body(0);
  exec.pool->run(body);
}

void run_panels(const lp::Job& job, int64_t threads, ExecContext& exec) {
  auto* packed = lp::as_floats(exec.workspace.data());
  std::byte* scratch = exec.workspace.data() + lp::packed_bytes(std::min(job.m, lp::kBlockTokens), job.k);
  const int64_t block = lp::token_block(job.m);
  for (int64_t begin = 0; begin < job.m; begin += block) {
    const lp::Job slice = lp::slice_tokens(job, begin, std::min(block, job.m - begin));
    exec.pool->parallel_for(slice.m, lp::kTokenUnit, [&](int64_t first, int64_t last, int) {
      HWY_DYNAMIC_DISPATCH(pack_tokens)(slice, {first, last}, packed);
    });
    const lp::Grid grid = lp::split(slice.m, slice.n, threads);
    exec.pool->run([&](int thread) {
      if (thread >= grid.rows * grid.tokens) return;
      const lp::Range rows = lp::part(slice.n, lp::kTileRows, grid.rows, thread % grid.rows);
      const lp::Range tokens = lp::part(slice.m, lp::kTokenUnit, grid.tokens, thread / grid.rows);
      if (rows.begin < rows.end && tokens.begin < tokens.end)
        HWY_DYNAMIC_DISPATCH(panel_rows)(slice, rows, tokens, packed, scratch + thread * lp::panel_bytes(slice.m));
    });
  }
}

}  // namespace

int64_t linear_cpu_workspace_bytes(int64_t m, int64_t, int64_t k, int threads) {
  const int64_t direct = threads * lp::direct_bytes(std::min(m, lp::kDirectTokens), k);
  if (m <= lp::kDirectTokens) return direct;
  const int64_t panels = lp::packed_bytes(std::min(m, lp::kBlockTokens), k) + threads * lp::panel_bytes(m);
  return std::max(direct, panels);
}

Status linear_cpu(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  HEARTH_CHECK(exec.pool != nullptr, "linear_cpu without a thread pool");
  const lp::Job job = lp::make_job(args);
  if (job.m == 0 || job.n == 0) return {};
  const int64_t wanted = linear_cpu_workspace_bytes(job.m, job.n, job.k, exec.pool->size());
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_cpu: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
  const int64_t threads = std::clamp<int64_t>(job.m * job.n * job.k / kProductsPerThread, 1, exec.pool->size());
  if (job.m <= lp::kDirectTokens) {
    run_direct(job, threads, exec);
  } else {
    run_panels(job, threads, exec);
  }
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
