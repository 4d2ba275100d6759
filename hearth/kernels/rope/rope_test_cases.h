// SPDX-License-Identifier: Apache-2.0
// The cases that every backend of rope is tested with, and the naive loop that sets the tolerance. Tests only; one
// thread.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "hearth/kernels/rope/rope.h"
#include "hearth/kernels/step_test.h"

namespace hearth {

// inv_freq as a model of this head dim has it.
inline TestTensor frequencies(int64_t head_dim) {
  TestTensor inv_freq(DType::kF32, 1, head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i)
    inv_freq.set(0, i,
                 static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim))));
  return inv_freq;
}

struct RopeCase {
  DType dtype;
  KvFormatId format;
  int64_t heads, kv_heads, head_dim, block_tokens;
  bool norm;
  std::vector<TestStep::Sequence> sequences;
  int64_t padding = 4;  // between rows of qkv
};

// Inputs of a case, and runs of it over copies of them.
struct RopeRun {
  RopeCase c;
  Random random;
  TestStep step;
  TestTensor qkv, cos_sin, q_norm, k_norm;
  // Scales of the KV formats, for the coded ones.
  TestTensor channel_scale, channel_offset, k_scale, v_scale;

  RopeRun(const RopeCase& rope_case, uint64_t seed)
      : c(rope_case),
        random(seed),
        step(c.format, 3, c.kv_heads, c.head_dim, c.block_tokens, c.sequences, random),
        qkv(c.dtype, step.tokens(), (c.heads + 2 * c.kv_heads) * c.head_dim, c.padding),
        cos_sin(DType::kF32, step.tokens(), c.head_dim),
        q_norm(DType::kF32, 1, c.head_dim),
        k_norm(DType::kBf16, 1, c.head_dim),
        channel_scale(DType::kF32, c.kv_heads, c.head_dim, 3),
        channel_offset(DType::kF32, c.kv_heads, c.head_dim, 1),
        k_scale(DType::kF32, 1, c.kv_heads),
        v_scale(DType::kF32, 1, 1) {
    qkv.fill(random), q_norm.fill(random), k_norm.fill(random);
    for (int64_t h = 0; h < c.kv_heads; ++h) {
      k_scale.set(0, h, 0.25f + static_cast<float>(h));
      for (int64_t i = 0; i < c.head_dim; ++i) {
        channel_scale.set(h, i, 0.25f + std::abs(random.normal()));
        channel_offset.set(h, i, random.normal());
      }
    }
    v_scale.set(0, 0, 0.3f);
    ExecContext exec;
    const TestTensor inv_freq = frequencies(c.head_dim);
    EXPECT_TRUE(rope_table_ref({step.batch().positions, inv_freq.vector(), 1.0f, cos_sin.view()}, exec));
  }
  RopeKvWriteArgs args(TestTensor& rows) {
    return {.qkv = rows.view(),
            .cos_sin = cos_sin.view(),
            .q_norm = c.norm ? q_norm.vector() : TensorView(),
            .k_norm = c.norm ? k_norm.vector() : TensorView(),
            .norm_eps = 1e-6f,
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .layer = 1,
            .k_channel_scale = channel_scale.view(),
            .k_scale = k_scale.vector(),
            .v_scale = v_scale.vector(),
            .k_channel_offset = channel_offset.view(),
            .kv = step.kv(),
            .batch = &step.batch()};
  }
  // What the cache holds for the tokens of the step, as a matrix [tokens, 2 * kv_heads * head_dim].
  TestTensor cached() const {
    TestTensor rows(c.format == KvFormatId::kF32 ? DType::kF32 : DType::kBf16, step.tokens(),
                    2 * c.kv_heads * c.head_dim);
    for (int64_t s = 0; s < step.batch().num_sequences(); ++s)
      for (int64_t t = step.batch().query_start[s]; t < step.batch().query_start[s + 1]; ++t)
        for (int64_t i = 0; i < rows.cols(); ++i) {
          const int64_t width = c.kv_heads * c.head_dim;
          rows.set(t, i, step.at(s, 1, i >= width, step.batch().positions[t], i % width / c.head_dim, i % c.head_dim));
        }
    return rows;
  }
};

inline std::vector<RopeCase> rope_cases() {
  std::vector<RopeCase> all;
  for (DType dtype : {DType::kF32, DType::kBf16})
    for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16})
      for (bool norm : {false, true})
        for (int64_t head_dim : {2, 6, 16, 64, 80, 96, 128, 256})
          all.push_back(
              {dtype, format, 6, 2, head_dim, head_dim == 6 ? 1 : 5, norm, {{0, 7}, {11, 1}, {3, 0}, {4, 9}}});
  return all;
}

inline std::string describe(const RopeCase& c) {
  return fmt::format("{} kv {} head dim {} norm {}", dtype_name(c.dtype), kv_format_name(c.format), c.head_dim, c.norm);
}

// The same formulas with f32 variables.
inline void rope_naive(RopeRun& run, TestTensor& qkv, TestTensor& cached) {
  const RopeCase& c = run.c;
  const int64_t half = c.head_dim / 2, width = c.kv_heads * c.head_dim;
  for (int64_t t = 0; t < qkv.rows(); ++t)
    for (int64_t h = 0; h < c.heads + 2 * c.kv_heads; ++h) {
      const bool is_query = h < c.heads, is_value = h >= c.heads + c.kv_heads;
      std::vector<float> x(c.head_dim), y(c.head_dim);
      float squares = 0;
      for (int64_t i = 0; i < c.head_dim; ++i) x[i] = run.qkv.at(t, h * c.head_dim + i), squares += x[i] * x[i];
      const float scale = 1 / std::sqrt(squares / static_cast<float>(c.head_dim) + 1e-6f);
      for (int64_t i = 0; i < c.head_dim && c.norm; ++i)
        x[i] = x[i] * scale * (is_query ? run.q_norm : run.k_norm).at(0, i);
      for (int64_t i = 0; i < half; ++i) {
        const float cos = run.cos_sin.at(t, i), sin = run.cos_sin.at(t, half + i);
        y[i] = x[i] * cos - x[half + i] * sin;
        y[half + i] = x[half + i] * cos + x[i] * sin;
      }
      for (int64_t i = 0; i < c.head_dim; ++i) {
        if (is_query)
          qkv.set(t, h * c.head_dim + i, y[i]);
        else if (!is_value)
          cached.set(t, (h - c.heads) * c.head_dim + i, y[i]);
        else
          cached.set(t, width + (h - c.heads - c.kv_heads) * c.head_dim + i, run.qkv.at(t, h * c.head_dim + i));
      }
    }
}

}  // namespace hearth
