// SPDX-License-Identifier: Apache-2.0
// Attention in double, and how far kernels that round weights to bf16 may be from it. Tests only; one thread.
#pragma once

#include <cmath>
#include <vector>

#include "hearth/kernels/attention/attention_test_cases.h"

namespace hearth {

// One head's row in double: the result, and the sum of weights times absolute values, which bounds what rounding does.
struct ExactRow {
  std::vector<double> value, magnitude;
};

class ExactAttention {
 public:
  explicit ExactAttention(const AttentionRun& run) : run_(run) {
    const AttentionCase& c = run.c;
    for (size_t s = 0; s < c.sequences.size(); ++s)
      for (int64_t h = 0; h < c.kv_heads; ++h)
        for (bool values : {false, true}) {
          std::vector<float> all;
          for (int64_t j = 0; j < c.sequences[s].past + c.sequences[s].queries; ++j)
            for (float x : run.step.head(static_cast<int64_t>(s), 1, values, j, h)) all.push_back(x);
          heads_.push_back(std::move(all));
        }
  }
  ExactRow row(int64_t s, int64_t token, int64_t position, int64_t head) const {
    const AttentionCase& c = run_.c;
    const int64_t dim = c.head_dim, first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
    const size_t at = static_cast<size_t>((s * c.kv_heads + head / (c.heads / c.kv_heads)) * 2);
    const std::vector<float>&keys = heads_[at], &values = heads_[at + 1];
    std::vector<double> p(static_cast<size_t>(position + 1));
    double largest = -INFINITY, total = 0;
    for (int64_t j = first; j <= position; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < dim; ++i) sum += double{run_.q.at(token, head * dim + i)} * keys[j * dim + i];
      p[j] = sum * run_.scale();
      largest = std::max(largest, p[j]);
    }
    ExactRow out{std::vector<double>(dim), std::vector<double>(dim)};
    for (int64_t j = first; j <= position; ++j) total += p[j] = std::exp(p[j] - largest);
    for (int64_t j = first; j <= position; ++j)
      for (int64_t i = 0; i < dim; ++i) {
        out.value[i] += p[j] / total * values[j * dim + i];
        out.magnitude[i] += p[j] / total * std::abs(values[j * dim + i]);
      }
    return out;
  }

 private:
  const AttentionRun& run_;
  std::vector<std::vector<float>> heads_;  // [sequence, kv head, K or V] of [position, channel]
};

// bf16 keeps 8 significant bits: rounding to nearest moves a number by half a unit of the last of them, at most 2^-8 of
// the number (just above a power of two). Weights are rounded before they meet V, while their total is not: at most
// 2^-8 of the sum of |weight * value|. The result is rounded: at most 2^-8 of it, after the first error. Sums of
// products and exponentials in f32 get a sixteenth of the first.
inline double allowed(const ExactRow& row, int64_t i) {
  const double weights = row.magnitude[i] * (0x1p-8 + 0x1p-12);
  return weights + (std::abs(row.value[i]) + weights) * 0x1p-8 + 1e-30;
}

// Every `stride`-th row, and the last of each sequence, all heads.
inline void expect_exact(const AttentionRun& run, const StepBatch& batch, const TestTensor& out, int64_t stride) {
  const ExactAttention exact(run);
  const AttentionCase& c = run.c;
  int64_t wrong = 0, checked = 0;
  double worst = 0;
  for (int64_t s = 0; s < batch.num_sequences(); ++s)
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
      if (t % stride != 0 && t != batch.query_start[s + 1] - 1) continue;
      for (int64_t h = 0; h < c.heads; ++h) {
        const ExactRow row = exact.row(s, t, batch.positions[t], h);
        for (int64_t i = 0; i < c.head_dim; ++i, ++checked) {
          const double error = std::abs(out.at(t, h * c.head_dim + i) - row.value[i]), most = allowed(row, i);
          worst = std::max(worst, error / most);
          if (error <= most) continue;
          if (++wrong == 1)
            ADD_FAILURE() << "first at sequence " << s << ", token " << t << ", position " << batch.positions[t]
                          << ", head " << h << ", channel " << i << ": found " << out.at(t, h * c.head_dim + i)
                          << ", wanted " << row.value[i] << " within " << most;
        }
      }
    }
  EXPECT_EQ(wrong, 0) << "of " << checked << " elements; the worst is " << worst << " times what is allowed";
}

}  // namespace hearth
