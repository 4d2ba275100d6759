// SPDX-License-Identifier: Apache-2.0
// SecondMoments: what the quantizer knows of a linear's input, gathered over the calibration's tokens. MomentSums: the
// same while it is gathered, in the memory of an op table.
//   I1. Sums are f64 and added in the order of add(): the same calls give the same bits for any number of threads.
// One owner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/kernels/op_table.h"
#include "hearth/quantize/compute.h"

namespace hearth {

class SecondMoments {
 public:
  SecondMoments() = default;
  // 8 k^2 bytes.
  explicit SecondMoments(int64_t k);

  // Adds x [tokens][k]. InvalidArgument where a value is NaN or Inf (nothing is added then).
  Status add(std::span<const float> x, Compute& compute);

  int64_t k() const { return k_; }
  int64_t tokens() const { return tokens_; }
  // sum over tokens of x_i x_j for j >= i at i * k + j; what lies below the diagonal has no meaning.
  std::span<const double> sums() const { return h_; }
  double diagonal(int64_t i) const { return h_[static_cast<size_t>(i * k_ + i)]; }
  // mean |x_i| over tokens; 0 without tokens.
  double mean_abs(int64_t i) const;
  float max_abs(int64_t i) const { return max_abs_[static_cast<size_t>(i)]; }

  // The moments of D x, D diagonal: what a linear sees whose input was multiplied by `factors` [k].
  void scale(std::span<const float> factors);
  SecondMoments scaled(std::span<const float> factors) const;

 private:
  friend class MomentSums;

  int64_t k_ = 0;
  int64_t tokens_ = 0;
  std::vector<double> h_;
  std::vector<double> sum_abs_;
  std::vector<float> max_abs_;
};

class MomentSums {
 public:
  // Where the ops' memory is the host's, the sums are those of the SecondMoments that read() returns.
  static Result<MomentSums> create(const OpTable& ops, int64_t k);

  // Adds x [tokens, k] f32 in the ops' memory, finite (REQUIRES).
  Status add(const ConstTensorView& x, ExecContext& exec);
  // What was added, once the queue's work is done; this is empty then.
  Result<SecondMoments> read(Queue& queue);

 private:
  const OpTable* ops_ = nullptr;
  SecondMoments moments_;
  Buffer buffer_;
  TensorView sums_, sum_abs_, max_abs_;
};

}  // namespace hearth
