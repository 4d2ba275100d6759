// SPDX-License-Identifier: Apache-2.0
// C += alpha A^T B for row-major matrices: the dense product under second moments and the quantizer's other CPU loops.
// Each element's sum has a fixed order, for any number of threads.
#pragma once

#include <cstdint>

#include "hearth/base/thread_pool.h"

namespace hearth {

// Products that are added up in the element type.
inline constexpr int64_t kProductDepth = 256;

template <class T, class TC>
struct ProductOf {
  int64_t m = 0, n = 0, p = 0;
  const T* a = nullptr;  // [p][m], row stride lda
  int64_t lda = 0;
  const T* b = nullptr;  // [p][n], row stride ldb
  int64_t ldb = 0;
  TC* c = nullptr;  // [m][n], row stride ldc
  int64_t ldc = 0;
  float alpha = 1;
  bool upper_only = false;  // blocks wholly below the diagonal are left alone, others are computed whole
};

// Products are summed in T over blocks of kProductDepth, the blocks in TC. Null: the calling thread does it all.
void add_product(const ProductOf<float, float>& job, ThreadPool* pool);
void add_product(const ProductOf<float, double>& job, ThreadPool* pool);
void add_product(const ProductOf<double, double>& job, ThreadPool* pool);

}  // namespace hearth
