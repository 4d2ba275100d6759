// SPDX-License-Identifier: Apache-2.0
// C += alpha A^T B on the CPU, the loop under second moments (f32 in f64 sums), the inverse's factor (f64) and the
// panel updates (f32).
//   I1. An element of C gets its products in the order of p: blocks of kDepth with fused multiply-adds in the element
//       type, each block added to C. Tiles and threads do not change that.
#include "hearth/kernels/cpu/product.h"

#include <algorithm>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/cpu/product.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/aligned_allocator.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

// What all instruction sets share.
#ifndef HEARTH_KERNELS_CPU_PRODUCT_SHARED_
#define HEARTH_KERNELS_CPU_PRODUCT_SHARED_
namespace hearth::product {

// A block of C that one thread computes, and the depth of a block of p: B's block of floats takes 128 KiB.
inline constexpr int64_t kBlockRows = 64;
inline constexpr int64_t kBlockColumns = 128;
inline constexpr int64_t kDepth = kProductDepth;

template <class T>
struct Scratch {
  hwy::AlignedFreeUniquePtr<T[]> a = hwy::AllocateAligned<T>(kBlockRows * kDepth);
  hwy::AlignedFreeUniquePtr<T[]> b = hwy::AllocateAligned<T>(kBlockColumns * kDepth);
};

}  // namespace hearth::product
#endif

HWY_BEFORE_NAMESPACE();
namespace hearth {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace pr = product;

constexpr int64_t kTileRows = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
constexpr int64_t kTileVectors = 2;

// [depth][width] of `from` into panels of kPanel columns: [panel][depth][column], zeros past the width.
template <int64_t kPanel, class T>
void pack(const T* from, int64_t stride, int64_t depth, int64_t width, T* to) {
  const hn::CappedTag<T, kPanel> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t first = 0; first < width; first += kPanel, to += kPanel * depth) {
    const int64_t count = std::min(kPanel, width - first);
    for (int64_t t = 0; t < depth; ++t) {
      const T* row = from + t * stride + first;
      T* out = to + t * kPanel;
      if (count == kPanel) {
        for (int64_t i = 0; i < kPanel; i += lanes) hn::StoreU(hn::LoadU(d, row + i), d, out + i);
      } else {
        std::copy_n(row, count, out);
        std::fill(out + count, out + kPanel, T{0});
      }
    }
  }
}

template <class T, class TC>
void block(const ProductOf<T, TC>& job, int64_t row, int64_t column, pr::Scratch<T>& scratch) {
  const hn::ScalableTag<T> d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  constexpr int64_t kTileColumns = kTileVectors * kLanes;
  static_assert(pr::kBlockColumns % kTileColumns == 0 && pr::kBlockRows % kTileRows == 0);
  const int64_t rows = std::min(pr::kBlockRows, job.m - row), columns = std::min(pr::kBlockColumns, job.n - column);
  for (int64_t p = 0; p < job.p; p += pr::kDepth) {
    const int64_t depth = std::min(pr::kDepth, job.p - p);
    pack<kTileRows>(job.a + p * job.lda + row, job.lda, depth, rows, scratch.a.get());
    pack<kTileColumns>(job.b + p * job.ldb + column, job.ldb, depth, columns, scratch.b.get());
    for (int64_t j = 0; j < columns; j += kTileColumns) {
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const T* a = scratch.a.get() + i * depth;
        const T* b = scratch.b.get() + j * depth;
        hn::Vec<decltype(d)> acc[kTileRows][kTileVectors];
        for (auto& line : acc)
          for (auto& v : line) v = hn::Zero(d);
        for (int64_t t = 0; t < depth; ++t, a += kTileRows, b += kTileColumns) {
          const auto b0 = hn::Load(d, b), b1 = hn::Load(d, b + kLanes);
          HWY_UNROLL(8)
          for (int64_t r = 0; r < kTileRows; ++r) {
            const auto broadcast = hn::Set(d, a[r]);
            acc[r][0] = hn::MulAdd(broadcast, b0, acc[r][0]);
            acc[r][1] = hn::MulAdd(broadcast, b1, acc[r][1]);
          }
        }
        // Through memory with constant indices only: a register that is indexed at run time is stored in every round.
        HWY_ALIGN T sums[kTileRows][kTileColumns];
        HWY_UNROLL(8)
        for (int64_t r = 0; r < kTileRows; ++r) {
          hn::Store(acc[r][0], d, sums[r]);
          hn::Store(acc[r][1], d, sums[r] + kLanes);
        }
        const int64_t count = std::min(kTileColumns, columns - j);
        for (int64_t r = 0; r < std::min(kTileRows, rows - i); ++r) {
          TC* c = job.c + (row + i + r) * job.ldc + column + j;
          for (int64_t s = 0; s < count; ++s) c[s] += static_cast<TC>(job.alpha) * static_cast<TC>(sums[r][s]);
        }
      }
    }
  }
}

void block_f32(const ProductOf<float, float>& job, int64_t row, int64_t column, pr::Scratch<float>& scratch) {
  block(job, row, column, scratch);
}
void block_f32_f64(const ProductOf<float, double>& job, int64_t row, int64_t column, pr::Scratch<float>& scratch) {
  block(job, row, column, scratch);
}
void block_f64(const ProductOf<double, double>& job, int64_t row, int64_t column, pr::Scratch<double>& scratch) {
  block(job, row, column, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {

HWY_EXPORT(block_f32);
HWY_EXPORT(block_f32_f64);
HWY_EXPORT(block_f64);

template <class T, class TC, class Block>
void run(const ProductOf<T, TC>& job, ThreadPool* pool, const Block& of_block) {
  struct Place {
    int64_t row, column;
  };
  std::vector<Place> places;
  for (int64_t row = 0; row < job.m; row += product::kBlockRows) {
    for (int64_t column = 0; column < job.n; column += product::kBlockColumns) {
      if (job.upper_only && column + product::kBlockColumns <= row) continue;
      places.push_back({row, column});
    }
  }
  const auto part = [&](int64_t begin, int64_t end, int) {
    product::Scratch<T> scratch;
    for (int64_t i = begin; i < end; ++i)
      of_block(job, places[static_cast<size_t>(i)].row, places[static_cast<size_t>(i)].column, scratch);
  };
  const auto count = static_cast<int64_t>(places.size());
  if (pool == nullptr) return part(0, count, 0);
  pool->parallel_for(count, 1, part);
}

}  // namespace

void add_product(const ProductOf<float, float>& job, ThreadPool* pool) {
  run(job, pool, [](auto&... args) { HWY_DYNAMIC_DISPATCH(block_f32)(args...); });
}
void add_product(const ProductOf<float, double>& job, ThreadPool* pool) {
  run(job, pool, [](auto&... args) { HWY_DYNAMIC_DISPATCH(block_f32_f64)(args...); });
}
void add_product(const ProductOf<double, double>& job, ThreadPool* pool) {
  run(job, pool, [](auto&... args) { HWY_DYNAMIC_DISPATCH(block_f64)(args...); });
}

}  // namespace hearth
#endif  // HWY_ONCE
