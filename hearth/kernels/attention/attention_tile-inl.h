// SPDX-License-Identifier: Apache-2.0
// The three pieces of one key tile of attention_cpu, for one instruction set: K transposed to
// [channel][key], the small matrix product that serves both Q K^T and P V, and the softmax of a row of
// scores. Every output element is one chain of multiply-adds in ascending order of the inner index, with
// the running value in a register or in memory, so that it does not matter how the loops around it cut.
#if defined(HEARTH_KERNELS_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEARTH_KERNELS_ATTENTION_TILE_INL_H_
#undef HEARTH_KERNELS_ATTENTION_TILE_INL_H_
#else
#define HEARTH_KERNELS_ATTENTION_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hearth/kernels/attention/attention_plan.h"
#include "hearth/kernels/cpu/exp-inl.h"
#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

// At most 16 lanes: the padding of the scratch memory.
using TileTag = hn::CappedTag<float, 16>;
using TileVec = hn::Vec<TileTag>;
inline constexpr int64_t kTileLanes = hn::MaxLanes(TileTag());
inline constexpr int64_t kTileKeys = cpu::AttentionPlan::kTileKeys;
// A block of the product: 6 x 4 accumulators with 32 registers, 6 x 2 with 16.
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockVecs = kTileLanes >= 16 ? 4 : 2;

// The operands of C[r, n] += sum over k of A[r, k] B[k, n]; strides in elements.
template <class B>
struct Product {
  const float* a = nullptr;
  int64_t a_stride = 0;
  const B* b = nullptr;
  int64_t b_stride = 0;
  float* c = nullptr;
  int64_t c_stride = 0;
  int64_t k = 0;
  bool accumulate = false;  // false: C begins at 0
};

template <int kRows, int kVecs, class B>
HWY_INLINE void product_block(const Product<B>& p, int64_t row, int64_t col) {
  const TileTag d;
  TileVec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v)
      acc[r][v] = p.accumulate ? hn::LoadU(d, p.c + (row + r) * p.c_stride + col + v * kTileLanes) : hn::Zero(d);
  const float* a = p.a + row * p.a_stride;
  const B* b = p.b + col;
  for (int64_t k = 0; k < p.k; ++k, b += p.b_stride) {
    TileVec bv[kVecs];
    for (int v = 0; v < kVecs; ++v) bv[v] = load_f32(d, b + v * kTileLanes);
    for (int r = 0; r < kRows; ++r) {
      const TileVec av = hn::Set(d, a[r * p.a_stride + k]);
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(av, bv[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, p.c + (row + r) * p.c_stride + col + v * kTileLanes);
}

template <int kVecs, class B>
HWY_INLINE void product_rows(const Product<B>& p, int64_t rows, int64_t col) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows) product_block<kBlockRows, kVecs>(p, r, col);
  switch (rows - r) {
    case 5: return product_block<5, kVecs>(p, r, col);
    case 4: return product_block<4, kVecs>(p, r, col);
    case 3: return product_block<3, kVecs>(p, r, col);
    case 2: return product_block<2, kVecs>(p, r, col);
    case 1: return product_block<1, kVecs>(p, r, col);
    default: return;
  }
}

// cols is a multiple of kTileLanes.
template <class B>
HWY_NOINLINE void product(const Product<B>& p, int64_t rows, int64_t cols) {
  int64_t col = 0;
  for (; col + kBlockVecs * kTileLanes <= cols; col += kBlockVecs * kTileLanes) product_rows<kBlockVecs>(p, rows, col);
  for (; col < cols; col += kTileLanes) product_rows<1>(p, rows, col);
}

#if HWY_TARGET != HWY_SCALAR
// Vector whose 128-bit block b is the four words at at(i, first + b).
template <class D, class At>
HWY_INLINE hn::Vec<D> gather_blocks(D d, const At& at, int64_t i, int64_t first) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, at(i, first));
  } else {
    const hn::Half<D> half;
    constexpr int64_t kHalfBlocks = static_cast<int64_t>(hn::MaxLanes(D())) / 8;
    return hn::Combine(d, gather_blocks(half, at, i, first + kHalfBlocks), gather_blocks(half, at, i, first));
  }
}

// Four words of kTileLanes keys, transposed. at(i, b) points to those of key 4 b + i; put(w, v) receives
// word w of all of them.
template <class At, class Put>
HWY_INLINE void transpose_words(const At& at, const Put& put) {
  const hn::RebindToUnsigned<TileTag> du;
  const hn::Repartition<uint64_t, decltype(du)> du64;
  // Vector i holds four words of the keys i, i + 4, ...: 4 x 4 transposes within the blocks finish it.
  const auto a0 = gather_blocks(du, at, 0, 0), a1 = gather_blocks(du, at, 1, 0);
  const auto a2 = gather_blocks(du, at, 2, 0), a3 = gather_blocks(du, at, 3, 0);
  const auto low01 = hn::BitCast(du64, hn::InterleaveLower(du, a0, a1));
  const auto low23 = hn::BitCast(du64, hn::InterleaveLower(du, a2, a3));
  const auto up01 = hn::BitCast(du64, hn::InterleaveUpper(du, a0, a1));
  const auto up23 = hn::BitCast(du64, hn::InterleaveUpper(du, a2, a3));
  put(0, hn::BitCast(du, hn::InterleaveLower(du64, low01, low23)));
  put(1, hn::BitCast(du, hn::InterleaveUpper(du64, low01, low23)));
  put(2, hn::BitCast(du, hn::InterleaveLower(du64, up01, up23)));
  put(3, hn::BitCast(du, hn::InterleaveUpper(du64, up01, up23)));
}

// put(c, channel c of kTileLanes keys) for the channels that fill whole steps, ascending; returns how many
// these are. at(i, b, c) points to channel c of key 4 b + i.
template <class T, class At, class Put>
HWY_INLINE int64_t transpose_channels(int64_t head_dim, const At& at, const Put& put) {
  const TileTag d;
  const hn::RebindToUnsigned<TileTag> du;
  constexpr int64_t kPerWord = 4 / sizeof(T);
  int64_t c = 0;
  for (; c + 4 * kPerWord <= head_dim; c += 4 * kPerWord) {
    const auto at_c = [&](int64_t i, int64_t b) HWY_ATTR { return static_cast<const uint32_t*>(at(i, b, c)); };
    transpose_words(at_c, [&](int64_t word, auto v) HWY_ATTR {
      if constexpr (kPerWord == 1) {
        put(c + word, hn::BitCast(d, v));
      } else {  // two bf16, the even channel in the low half
        put(c + 2 * word, hn::BitCast(d, hn::ShiftLeft<16>(v)));
        put(c + 2 * word + 1, hn::BitCast(d, hn::And(v, hn::Set(du, 0xFFFF0000))));
      }
    });
  }
  return c;
}

// The same for the keys at from[kTileLanes].
template <class T, class Put>
HWY_INLINE int64_t transpose_group(const std::byte* const* from, int64_t head_dim, const Put& put) {
  const auto channel = [](const std::byte* key, int64_t i) -> const void* {
    return key + i * static_cast<int64_t>(sizeof(T));
  };
  // Keys of one block lie at one distance: a few addresses in registers instead of one per key in memory.
  const int64_t stride = from[1] - from[0];
  bool evenly = true;
  for (int64_t i = 2; i < kTileLanes; ++i) evenly &= from[i] - from[i - 1] == stride;
  if (!evenly) {
    const auto at = [&](int64_t i, int64_t b, int64_t c) { return channel(from[4 * b + i], c); };
    return transpose_channels<T>(head_dim, at, put);
  }
  const std::byte* quarter[kTileLanes / 4];
  for (int64_t b = 0; b < kTileLanes / 4; ++b) quarter[b] = from[4 * b];
  const auto at = [&](int64_t i, int64_t b, int64_t c) { return channel(quarter[b] + i * stride, c); };
  return transpose_channels<T>(head_dim, at, put);
}
#endif

// kt[c * kTileKeys + j] = channel c of the key at keys[j], for n keys rounded up to whole vectors (the last
// key stands in for the missing ones).
template <class T>
HWY_NOINLINE void transpose_keys(const std::byte* const* keys, int64_t n, int64_t head_dim, float* kt) {
  for (int64_t j = 0; j < n; j += kTileLanes, kt += kTileLanes) {
    const std::byte* from[kTileLanes];
    for (int64_t i = 0; i < kTileLanes; ++i) from[i] = keys[std::min(j + i, n - 1)];
    int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
    c = transpose_group<T>(from, head_dim, [&](int64_t channel, TileVec v) HWY_ATTR {
      hn::StoreU(v, TileTag(), kt + channel * kTileKeys);
    });
#endif
    for (; c < head_dim; ++c)
      for (int64_t i = 0; i < kTileLanes; ++i)
        kt[c * kTileKeys + i] = to_float(static_cast<const T*>(static_cast<const void*>(from[i]))[c]);
  }
}

// Few rows need no K^T in memory: their scores are added up while the keys are transposed in registers, in
// the same order as the product's. True where the instruction set and the channels allow it.
template <class T>
constexpr bool can_score_directly(int64_t head_dim) {
  return kTileLanes >= 4 && head_dim % (16 / static_cast<int64_t>(sizeof(T))) == 0;
}

#if HWY_TARGET != HWY_SCALAR
template <class T, int kRows>
HWY_INLINE void score_rows(const std::byte* const* keys, int64_t n, int64_t head_dim, const float* q, int64_t q_stride,
                           float* scores) {
  const TileTag d;
  for (int64_t j = 0; j < n; j += kTileLanes) {
    const std::byte* from[kTileLanes];
    for (int64_t i = 0; i < kTileLanes; ++i) from[i] = keys[std::min(j + i, n - 1)];
    TileVec acc[kRows];
    for (int r = 0; r < kRows; ++r) acc[r] = hn::Zero(d);
    transpose_group<T>(from, head_dim, [&](int64_t c, TileVec v) HWY_ATTR {
      for (int r = 0; r < kRows; ++r) acc[r] = hn::MulAdd(hn::Set(d, q[r * q_stride + c]), v, acc[r]);
    });
    for (int r = 0; r < kRows; ++r) hn::StoreU(acc[r], d, scores + r * kTileKeys + j);
  }
}

// scores[r * kTileKeys + j] for up to kBlockRows rows. REQUIRES: can_score_directly<T>(head_dim).
template <class T>
HWY_NOINLINE void score_directly(const std::byte* const* keys, int64_t n, int64_t head_dim, const float* q,
                                 int64_t q_stride, int64_t rows, float* scores) {
  switch (rows) {
    case 6: return score_rows<T, 6>(keys, n, head_dim, q, q_stride, scores);
    case 5: return score_rows<T, 5>(keys, n, head_dim, q, q_stride, scores);
    case 4: return score_rows<T, 4>(keys, n, head_dim, q, q_stride, scores);
    case 3: return score_rows<T, 3>(keys, n, head_dim, q, q_stride, scores);
    case 2: return score_rows<T, 2>(keys, n, head_dim, q, q_stride, scores);
    default: return score_rows<T, 1>(keys, n, head_dim, q, q_stride, scores);
  }
}
#endif

// One step of the online softmax (Milakov and Gimelshein, 2018) over the scores [begin, end) of a tile:
// replaces them by exp(score - maximum), the rest of the tile by 0, and brings maximum, sum and the row
// `o` of `width` channels up to the new maximum. sum == 0 means that the row has seen no key yet. kWhole:
// the row sees all of the tile, and nothing need be masked.
template <bool kWhole>
HWY_INLINE void softmax_step(float* scores, [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end,
                             float& maximum, float& sum, float* o, int64_t width) {
  const TileTag d;
  const TileVec first = hn::Set(d, static_cast<float>(begin)), last = hn::Set(d, static_cast<float>(end));
  const auto visible = [&](int64_t v) HWY_ATTR {
    const TileVec index = hn::Iota(d, static_cast<float>(v));
    return hn::And(hn::Ge(index, first), hn::Lt(index, last));
  };
  const TileVec lowest = hn::Set(d, -INFINITY);
  TileVec largest = lowest;
  for (int64_t v = 0; v < kTileKeys; v += kTileLanes) {
    TileVec score = hn::LoadU(d, scores + v);
    if constexpr (!kWhole) score = hn::IfThenElse(visible(v), score, lowest);
    largest = hn::Max(largest, score);
  }
  const float tile_maximum = hn::GetLane(hn::MaxOfLanes(d, largest));
  const float new_maximum = sum == 0 ? tile_maximum : std::max(maximum, tile_maximum);
  const TileVec shift = hn::Set(d, new_maximum);
  TileVec total = hn::Zero(d);
  for (int64_t v = 0; v < kTileKeys; v += kTileLanes) {
    TileVec p = exp_f32(d, hn::Sub(hn::LoadU(d, scores + v), shift));
    if constexpr (!kWhole) p = hn::IfThenElseZero(visible(v), p);
    total = hn::Add(total, p);
    hn::StoreU(p, d, scores + v);
  }
  if (sum != 0 && new_maximum != maximum) {
    const TileVec factor = exp_f32(d, hn::Set(d, maximum - new_maximum));
    for (int64_t i = 0; i < width; i += kTileLanes) hn::StoreU(hn::Mul(hn::LoadU(d, o + i), factor), d, o + i);
    sum *= hn::GetLane(factor);
  }
  sum += hn::GetLane(hn::SumOfLanes(d, total));
  maximum = new_maximum;
}

// Adds a partition's (o, maximum, sum) to a row's running total.
HWY_INLINE void merge_partition(const float* o, float maximum, float sum, float* total_o, float& total_maximum,
                                float& total_sum, int64_t width) {
  const TileTag d;
  if (sum == 0) return;  // the row sees no key of this partition
  if (total_sum == 0) {
    std::copy(o, o + width, total_o);
    total_maximum = maximum, total_sum = sum;
    return;
  }
  const float new_maximum = std::max(total_maximum, maximum);
  const TileVec a = exp_f32(d, hn::Set(d, total_maximum - new_maximum));
  const TileVec b = exp_f32(d, hn::Set(d, maximum - new_maximum));
  for (int64_t i = 0; i < width; i += kTileLanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, o + i), b, hn::Mul(hn::LoadU(d, total_o + i), a)), d, total_o + i);
  total_sum = total_sum * hn::GetLane(a) + sum * hn::GetLane(b);
  total_maximum = new_maximum;
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
