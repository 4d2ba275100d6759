// SPDX-License-Identifier: Apache-2.0
// Attention in double, and how far kernels that round weights to bf16, and transformed queries to f16, may be from it.
// Tests only; one thread.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "hearth/kernels/attention/attention_test_cases.h"

namespace hearth {

// One head's row in double: the result, and what bounds that of rounding: sums of weights times absolute values, of the
// values and of what a tile has of them, what weights too small for f16 have of them, and how far a score may be off.
struct ExactRow {
  std::vector<double> value, magnitude, tile_magnitude, lost;
  double score_error = 0;
};

class ExactAttention {
 public:
  explicit ExactAttention(const AttentionRun& run) : run_(run) {
    const AttentionCase& c = run.c;
    for (size_t s = 0; s < c.sequences.size(); ++s)
      for (int64_t h = 0; h < c.kv_heads; ++h)
        for (bool values : {false, true}) {
          Head all;
          const double scale = c.format != KvFormatId::kFp8 ? 1 : values ? run.v_scale.at(0, 0) : run.k_scale.at(0, h);
          for (int64_t j = 0; j < c.sequences[s].past + c.sequences[s].queries; ++j) {
            const auto at = static_cast<int64_t>(s);
            for (float x : run.step.head(at, 1, values, j, h)) all.numbers.push_back(x * scale);
            all.centre.push_back(c.format == KvFormatId::kInt4Saw ? centre(run.step.steps(at, 1, values, j, h)) : 0);
          }
          heads_.push_back(std::move(all));
        }
  }
  ExactRow row(int64_t s, int64_t token, int64_t position, int64_t head) const {
    const AttentionCase& c = run_.c;
    const int64_t dim = c.head_dim, first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
    const size_t at = static_cast<size_t>((s * c.kv_heads + head / (c.heads / c.kv_heads)) * 2);
    const std::vector<double>&keys = heads_[at].numbers, &values = heads_[at + 1].numbers;
    const std::vector<double> query = transformed(token, head);
    // f16 keeps 11 bits of a query that is no bf16 any more.
    const double rounding = c.format == KvFormatId::kInt4Fireq || c.format == KvFormatId::kInt4Saw ? 0x1p-11 : 0;
    ExactRow out{std::vector<double>(dim), std::vector<double>(dim), std::vector<double>(dim),
                 std::vector<double>(dim)};
    std::vector<double> p(static_cast<size_t>(position + 1));
    double largest = -INFINITY, total = 0;
    for (int64_t j = first; j <= position; ++j) {
      double sum = 0, absolute = 0;
      for (int64_t i = 0; i < dim; ++i) {
        sum += query[i] * keys[j * dim + i];
        absolute += std::abs(query[i] * keys[j * dim + i]);
      }
      p[j] = sum * run_.scale();
      out.score_error = std::max(out.score_error, absolute * run_.scale() * rounding);
      largest = std::max(largest, p[j]);
    }
    for (int64_t j = first; j <= position; ++j) total += p[j] = std::exp(p[j] - largest);
    for (int64_t j = first; j <= position; ++j)
      for (int64_t i = 0; i < dim; ++i) {
        out.value[i] += p[j] / total * values[j * dim + i];
        out.magnitude[i] += p[j] / total * std::abs(values[j * dim + i]);
        if (c.format == KvFormatId::kFp8) out.lost[i] += std::abs(values[j * dim + i]) * 0x1p-39 / total;
        out.tile_magnitude[i] += p[j] / total * std::abs(values[j * dim + i] - heads_[at + 1].centre[j]);
      }
    return out;
  }

 private:
  struct Head {
    std::vector<double> numbers;  // [position, channel]
    std::vector<double> centre;   // [position]: what kInt4Saw's code 8 stands for; else 0
  };
  static double centre(const std::byte* steps) {
    f16 step, base;
    std::memcpy(&step, steps, 2), std::memcpy(&base, steps + 2, 2);
    return 8 * double{step.to_float()} + base.to_float();
  }
  std::vector<double> transformed(int64_t token, int64_t head) const {
    const AttentionCase& c = run_.c;
    std::vector<double> query;
    for (int64_t i = 0; i < c.head_dim; ++i) {
      query.push_back(run_.q.at(token, head * c.head_dim + i));
      if (c.format == KvFormatId::kInt4Fireq) query[i] /= run_.channel_scale.at(head / (c.heads / c.kv_heads), i);
    }
    if (c.format == KvFormatId::kInt4Saw) hadamard_rotate(std::span(query));
    return query;
  }

  const AttentionRun& run_;
  std::vector<Head> heads_;  // [sequence, kv head, K or V]
};

// bf16 keeps 8 significant bits: rounding to nearest moves a number by half a unit of the last of them, at most 2^-8 of
// the number (just above a power of two). Weights are rounded before they meet V, while their total is not: at most
// 2^-8 of the sum of |weight * value|. The result is rounded: at most 2^-8 of it, after the first error. Sums of
// products and exponentials in f32 get a sixteenth of the first. Scores that are off by e change weights, and their
// total, by a factor of up to exp(e) each. f16 has numbers from 2^-24, and the largest weight, of those of FP8's values, is
// 2^14 there: the others are off by up to 2^-39 of it.
inline double allowed(const ExactRow& row, int64_t i) {
  const double weights = row.tile_magnitude[i] * 0x1p-8 + std::max(row.magnitude[i], row.tile_magnitude[i]) * 0x1p-12 +
                         row.magnitude[i] * std::expm1(2 * row.score_error) + row.lost[i];
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
