// SPDX-License-Identifier: Apache-2.0
// Rows of logits -> log probabilities, with Highway and on all threads of a pool. A row's result depends
// on nothing but the row and the instruction set.
// Numerics: exp in f32 (1 ulp), sums of 64 in each f32 lane, those in f64: a log probability is within
// 2e-6 of the exact one.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/tensor/shape.h"

namespace hearth {

struct TokenScore {
  double logprob = 0;  // natural log of the target's probability
  int32_t top = 0;     // the most likely token, the smaller id of equals
};

// logits [rows, vocab] f32, targets and out [rows]. Internal for logits that are not finite.
// REQUIRES: sizes agree, targets in [0, vocab).
Status score_rows(ConstTensorView logits, std::span<const int32_t> targets, std::span<TokenScore> out,
                  ThreadPool& pool);

struct RowDivergence {
  double kl = 0;  // KL(P || Q) in nats
  bool same_top = false;
};

// KL divergence of softmax(q) from softmax(p), row by row; p, q [rows, vocab] f32, out [rows].
// Exactly 0 for equal rows. Errors and REQUIRES as score_rows.
Status divergence_rows(ConstTensorView p, ConstTensorView q, std::span<RowDivergence> out, ThreadPool& pool);

}  // namespace hearth
