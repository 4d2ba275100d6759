// SPDX-License-Identifier: Apache-2.0
// The cases that every backend of attention is tested with, and the naive loop that sets the tolerance. Tests only;
// one thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/step_test.h"
#include "hearth/tensor/hadamard.h"

namespace hearth {

struct AttentionCase {
  DType dtype = DType::kF32;
  KvFormatId format = KvFormatId::kF32;
  int64_t heads = 4, kv_heads = 2, head_dim = 64, block_tokens = 16, window = 0;
  std::vector<TestStep::Sequence> sequences;
};

inline std::string describe(const AttentionCase& c) {
  std::string text = fmt::format("{} kv {}, {} heads over {} of {}, blocks of {}, window {}:", dtype_name(c.dtype),
                                 kv_format_name(c.format), c.heads, c.kv_heads, c.head_dim, c.block_tokens, c.window);
  for (const auto& s : c.sequences) text += fmt::format(" {}+{}", s.past, s.queries);
  return text;
}

// A case's inputs, and runs over them. Layer 1 of 2 is the one; all else in the pool is NaN.
struct AttentionRun {
  AttentionCase c;
  Random random;
  TestStep step;
  TestTensor q;
  // Scales of the KV formats, for the coded ones.
  TestTensor channel_scale, k_scale, v_scale;

  AttentionRun(const AttentionCase& attention_case, uint64_t seed)
      : c(attention_case),
        random(seed),
        step(c.format, 2, c.kv_heads, c.head_dim, c.block_tokens, c.sequences, random),
        q(c.dtype, step.tokens(), c.heads * c.head_dim, 24),
        channel_scale(DType::kF32, c.kv_heads, c.head_dim, 3),
        k_scale(DType::kF32, 1, c.kv_heads),
        v_scale(DType::kF32, 1, 1) {
    step.fill(1, random);
    q.fill(random, 1.5f);
    for (int64_t h = 0; h < c.kv_heads; ++h) {
      k_scale.set(0, h, 0.5f + 0.75f * static_cast<float>(h));
      for (int64_t i = 0; i < c.head_dim; ++i) channel_scale.set(h, i, i % 5 == 2 ? 0.125f : 1.5f);
    }
    v_scale.set(0, 0, 0.3f);
  }
  float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim))); }
  TestTensor empty_out() const { return TestTensor(c.dtype, step.tokens(), c.heads * c.head_dim, 8); }
  AttentionArgs args(const TestTensor& out) const {
    return {.q = q.view(),
            .out = out.view(),
            .heads = c.heads,
            .scale = scale(),
            .window = c.window,
            .layer = 1,
            .k_channel_scale = channel_scale.view(),
            .k_scale = k_scale.vector(),
            .v_scale = v_scale.vector(),
            .kv = step.kv(),
            .batch = &step.batch()};
  }
  TestTensor reference() const {
    TestTensor out = empty_out();
    ExecContext exec;
    EXPECT_TRUE(attention_ref(args(out), exec));
    return out;
  }
  // The textbook loop with f32 variables.
  TestTensor naive() const {
    TestTensor out = empty_out();
    for (int64_t s = 0; s < step.batch().num_sequences(); ++s)
      for (int64_t t = step.batch().query_start[s]; t < step.batch().query_start[s + 1]; ++t)
        for (int64_t h = 0; h < c.heads; ++h) naive_row(out, s, t, h);
    return out;
  }
  void naive_row(TestTensor& out, int64_t s, int64_t t, int64_t h) const {
    const int64_t last = step.batch().positions[t], kv_head = h / (c.heads / c.kv_heads);
    const int64_t first = c.window > 0 ? std::max<int64_t>(0, last - c.window + 1) : 0;
    std::vector<float> p(last + 1), sum(c.head_dim), query(c.head_dim);
    for (int64_t i = 0; i < c.head_dim; ++i) {
      query[i] = q.at(t, h * c.head_dim + i);
      if (c.format == KvFormatId::kInt4Fireq) query[i] /= channel_scale.at(kv_head, i);
    }
    if (c.format == KvFormatId::kInt4Saw) hadamard_rotate(std::span(query));
    const bool fp8 = c.format == KvFormatId::kFp8;
    float largest = -INFINITY, total = 0;
    for (int64_t j = first; j <= last; ++j) {
      const std::vector<float> key = step.head(s, 1, false, j, kv_head);
      for (int64_t i = 0; i < c.head_dim; ++i) p[j] += query[i] * key[i] * (fp8 ? k_scale.at(0, kv_head) : 1);
      p[j] *= scale();
      largest = std::max(largest, p[j]);
    }
    for (int64_t j = first; j <= last; ++j) total += p[j] = std::exp(p[j] - largest);
    for (int64_t j = first; j <= last; ++j) {
      const std::vector<float> value = step.head(s, 1, true, j, kv_head);
      for (int64_t i = 0; i < c.head_dim; ++i) sum[i] += p[j] / total * value[i] * (fp8 ? v_scale.at(0, 0) : 1);
    }
    for (int64_t i = 0; i < c.head_dim; ++i) out.set(t, h * c.head_dim + i, sum[i]);
  }
};

inline int64_t longest(const AttentionCase& c) {
  int64_t context = 1;
  for (const auto& s : c.sequences) context = std::max(context, s.past + s.queries);
  return context;
}

inline constexpr KvFormatId kCodedFormats[] = {KvFormatId::kFp8, KvFormatId::kInt4, KvFormatId::kInt4Fireq,
                                               KvFormatId::kInt4Saw};

inline bool stores(KvFormatId format, int64_t head_dim) {
  return KvLayout::make(format, 1, 1, head_dim, 1).has_value();
}

inline std::vector<AttentionCase> attention_cases() {
  std::vector<AttentionCase> all;
  const std::vector<std::vector<TestStep::Sequence>> batches = {
      {{0, 1}},    {{0, 2}},
      {{62, 1}},   {{63, 1}},
      {{64, 1}},   {{127, 1}},
      {{128, 1}},  {{300, 1}},
      {{0, 63}},   {{0, 64}},
      {{0, 65}},   {{0, 131}},
      {{100, 37}}, {{0, 5}, {17, 1}, {0, 0}, {260, 3}, {64, 70}}};
  for (const auto& sequences : batches) {
    all.push_back({.sequences = sequences});
    all.push_back({.dtype = DType::kBf16, .format = KvFormatId::kBf16, .sequences = sequences});
    all.push_back({.head_dim = 16, .block_tokens = 5, .window = 33, .sequences = sequences});
  }
  const std::vector<TestStep::Sequence> mixed = {{0, 70}, {150, 1}};
  for (int64_t head_dim : {1, 2, 3, 7, 8, 15, 16, 17, 20, 80, 96, 128, 256})
    for (KvFormatId format : {KvFormatId::kF32, KvFormatId::kBf16})
      all.push_back(
          {.format = format, .heads = 3, .kv_heads = 1, .head_dim = head_dim, .block_tokens = 7, .sequences = mixed});
  for (int64_t group : {1, 2, 5, 7, 8, 71})
    all.push_back({.dtype = DType::kBf16, .heads = 2 * group, .kv_heads = 2, .head_dim = 16, .sequences = mixed});
  for (int64_t window : {1, 2, 63, 64, 65, 129, 1000})
    all.push_back({.window = window, .sequences = {{0, 200}, {299, 1}, {250, 20}}});
  for (int64_t block_tokens : {1, 64, 256}) all.push_back({.block_tokens = block_tokens, .sequences = mixed});
  for (KvFormatId format : kCodedFormats) {
    for (int64_t head_dim : {2, 20, 64, 80, 128})
      if (stores(format, head_dim))
        all.push_back({.format = format, .heads = 3, .kv_heads = 1, .head_dim = head_dim, .sequences = mixed});
    for (int64_t group : {1, 3, 4, 7, 8})
      all.push_back({.dtype = DType::kBf16,
                     .format = format,
                     .heads = 2 * group,
                     .kv_heads = 2,
                     .block_tokens = 7,
                     .sequences = {{0, 70}, {150, 1}, {63, 3}}});
    for (int64_t window : {1, 63, 65})
      all.push_back({.format = format, .window = window, .sequences = {{0, 200}, {299, 1}, {250, 20}}});
  }
  return all;
}

}  // namespace hearth
