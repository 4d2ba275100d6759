// SPDX-License-Identifier: Apache-2.0
// Compute on the CPU: dense products by cpu/product.h, the factor of the inverse by blocks, groups by group_cpu.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hearth/kernels/cpu/product.h"
#include "hearth/quantize/compute.h"
#include "hearth/quantize/group_cpu.h"

namespace hearth {
namespace {

constexpr int64_t kBlock = 64;  // of the factorization

// r [k][k], upper triangle of a symmetric matrix, becomes its upper Cholesky factor R (A = R^T R); false where a pivot
// is not positive. What lies below the diagonal is left.
bool cholesky(int64_t k, double* r, ThreadPool& pool) {
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, k);
    for (int64_t i = begin; i < end; ++i) {
      double pivot = r[i * k + i];
      for (int64_t t = begin; t < i; ++t) pivot -= r[t * k + i] * r[t * k + i];
      if (!(pivot > 0) || !std::isfinite(pivot)) return false;
      const double root = std::sqrt(pivot);
      r[i * k + i] = root;
      for (int64_t j = i + 1; j < end; ++j) {
        double sum = r[i * k + j];
        for (int64_t t = begin; t < i; ++t) sum -= r[t * k + i] * r[t * k + j];
        r[i * k + j] = sum / root;
      }
    }
    if (end == k) break;
    // Rows of the block right of it: a triangular solve, columns apart from each other.
    pool.parallel_for(k - end, 32, [&](int64_t first, int64_t last, int) {
      for (int64_t i = begin; i < end; ++i) {
        double* row = r + i * k + end;
        for (int64_t t = begin; t < i; ++t) {
          const double factor = r[t * k + i];
          const double* above = r + t * k + end;
          for (int64_t j = first; j < last; ++j) row[j] -= factor * above[j];
        }
        const double inverse = 1 / r[i * k + i];
        for (int64_t j = first; j < last; ++j) row[j] *= inverse;
      }
    });
    const double* panel = r + begin * k + end;
    add_product({.m = k - end,
                 .n = k - end,
                 .p = end - begin,
                 .a = panel,
                 .lda = k,
                 .b = panel,
                 .ldb = k,
                 .c = r + end * k + end,
                 .ldc = k,
                 .alpha = -1,
                 .upper_only = true},
                &pool);
  }
  return true;
}

// x [k][k] = the inverse of L = R^T, lower, zeros above.
void invert_lower(int64_t k, const double* r, double* x, ThreadPool& pool) {
  std::fill_n(x, k * k, 0.0);
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, k);
    for (int64_t i = begin; i < end; ++i) x[i * k + i] = 1;
    if (begin > 0)
      add_product({.m = end - begin,
                   .n = begin,
                   .p = begin,
                   .a = r + begin,
                   .lda = k,
                   .b = x,
                   .ldb = k,
                   .c = x + begin * k,
                   .ldc = k,
                   .alpha = -1},
                  &pool);
    pool.parallel_for(end, 32, [&](int64_t first, int64_t last, int) {
      for (int64_t i = begin; i < end; ++i) {
        double* row = x + i * k;
        for (int64_t t = begin; t < i; ++t) {
          const double factor = r[t * k + i];
          const double* above = x + t * k;
          for (int64_t j = first; j < last; ++j) row[j] -= factor * above[j];
        }
        const double inverse = 1 / r[i * k + i];
        for (int64_t j = first; j < last; ++j) row[j] *= inverse;
      }
    });
  }
}

class CpuCompute final : public Compute {
 public:
  explicit CpuCompute(ThreadPool& pool) : pool_(pool) {}

  // With J the reversal of order: J H J = R^T R, so H = M M^T with M = J R^T J upper, and U = M^-1 = J (R^T)^-1 J.
  Status inverse_factor(int64_t k, double* upper) override {
    std::vector<double> flipped(static_cast<size_t>(k * k)), inverse(static_cast<size_t>(k * k));
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = i; j < k; ++j) flipped[static_cast<size_t>((k - 1 - j) * k + k - 1 - i)] = upper[i * k + j];
    if (!cholesky(k, flipped.data(), pool_))
      return invalid_argument("second moments [{}, {}] are not positive definite: more damping is needed", k, k);
    invert_lower(k, flipped.data(), inverse.data(), pool_);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j)
        upper[i * k + j] = j < i ? 0.0 : inverse[static_cast<size_t>((k - 1 - i) * k + k - 1 - j)];
    return {};
  }

  Status subtract_product(const Product& p) override {
    add_product(ProductOf<float, float>{.m = p.m,
                                        .n = p.n,
                                        .p = p.p,
                                        .a = p.a,
                                        .lda = p.lda,
                                        .b = p.b,
                                        .ldb = p.ldb,
                                        .c = p.c,
                                        .ldc = p.ldc,
                                        .alpha = -1},
                &pool_);
    return {};
  }

  Status fit_group(const FitArgs& args) override {
    for_tiles(args.rows, [&](int64_t row) { fit_group_tile(args, row); });
    return {};
  }
  Status round_block(const RoundArgs& args) override {
    for_tiles(args.rows, [&](int64_t row) { round_block_tile(args, row); });
    return {};
  }
  Status refine_group(const RefineArgs& args) override {
    for_tiles(args.rows, [&](int64_t row) { refine_group_tile(args, row); });
    return {};
  }

  Status assign_lines(const AssignArgs& args) override {
    for_tiles(args.rows, [&](int64_t row) { assign_lines_tile(args, row); });
    return {};
  }

  ThreadPool& pool() override { return pool_; }

 private:
  template <class Body>
  void for_tiles(int64_t rows, const Body& body) {
    HEARTH_CHECK(rows % kRowTile == 0, "{} rows are not padded to {}", rows, kRowTile);
    pool_.parallel_for(rows / kRowTile, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) body(tile * kRowTile);
    });
  }

  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<Compute> make_cpu_compute(ThreadPool& pool) { return std::make_unique<CpuCompute>(pool); }

}  // namespace hearth
