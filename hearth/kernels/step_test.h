// SPDX-License-Identifier: Apache-2.0
// Test support for ops that read or write the KV cache: a pool whose blocks lie in random order with
// poisoned gaps, and ragged batches over it. Tests only; one thread.
#pragma once

#include <numeric>
#include <vector>

#include "hearth/kernels/op_test.h"
#include "hearth/tensor/kv_codec.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// Sequences as (context before the step, tokens in the step), with blocks for all of them.
class TestStep {
 public:
  struct Sequence {
    int64_t past = 0;
    int64_t queries = 0;
  };

  TestStep(KvFormatId format, int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t block_tokens,
           const std::vector<Sequence>& sequences, Random& random)
      : layout_(*KvLayout::make(format, layers, kv_heads, head_dim, block_tokens)) {
    query_start_.push_back(0);
    int64_t most_blocks = 0;
    for (const Sequence& s : sequences) {
      const int64_t context = s.past + s.queries;
      context_len_.push_back(static_cast<int32_t>(context));
      query_start_.push_back(query_start_.back() + static_cast<int32_t>(s.queries));
      for (int64_t i = 0; i < s.queries; ++i) positions_.push_back(static_cast<int32_t>(s.past + i));
      most_blocks = std::max(most_blocks, (context + block_tokens - 1) / block_tokens);
    }
    tokens_.assign(positions_.size(), 0);
    stride_ = most_blocks + 1;
    // Blocks of all sequences in random order, 64 poisoned bytes between neighbours.
    const int64_t blocks = stride_ * static_cast<int64_t>(sequences.size()), pitch = layout_.block_bytes() + 64;
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = blocks - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    for (int64_t b : order) block_table_.push_back(b * pitch);
    pool_.assign(static_cast<size_t>(blocks * pitch / 4 + 16), NAN);
    batch_ = {.tokens = tokens_,
              .positions = positions_,
              .query_start = query_start_,
              .context_len = context_len_,
              .block_table = block_table_,
              .block_table_stride = stride_};
  }
  TestStep(const TestStep&) = delete;

  // Random K and V for every position below the contexts, of one layer.
  void fill(int64_t layer, Random& random) {
    std::vector<float> key(layout_.head_dim), value(layout_.head_dim);
    for (int64_t s = 0; s < batch_.num_sequences(); ++s)
      for (int64_t j = 0; j < context_len_[s]; ++j)
        for (int64_t h = 0; h < layout_.kv_heads; ++h) {
          for (int64_t i = 0; i < layout_.head_dim; ++i) key[i] = random.normal(), value[i] = random.normal();
          set_head(s, layer, false, j, h, key), set_head(s, layer, true, j, h, value);
        }
  }
  // Heads as kv_codec.h stores them, FP8 with scale 1: transforms of K and scales are the caller's.
  std::vector<float> head(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head) const {
    std::vector<float> x(layout_.head_dim);
    load_kv_head(layout_.format, codes(s, layer, is_value, position, head), steps(s, layer, is_value, position, head),
                 1, x);
    return x;
  }
  void set_head(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head, const std::vector<float>& x) {
    store_kv_head(layout_.format, x, 1, codes(s, layer, is_value, position, head),
                  steps(s, layer, is_value, position, head));
  }
  // Zeroes all bytes of one head.
  void clear(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head) {
    std::memset(codes(s, layer, is_value, position, head), 0, layout_.token_stride_bytes);
    std::memset(steps(s, layer, is_value, position, head), 0, layout_.scale_bytes);
  }
  float at(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head, int64_t i) const {
    return this->head(s, layer, is_value, position, head)[i];
  }
  // REQUIRES: f32 or bf16.
  void set(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head, int64_t i, float value) {
    const int64_t size = layout_.format == KvFormatId::kF32 ? 4 : 2;
    store_kv_head(layout_.format, {&value, 1}, 1, codes(s, layer, is_value, position, head) + i * size, nullptr);
  }
  // Where a head's codes and its steps lie.
  std::byte* codes(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head) const {
    return start(s, layer, is_value, position) + position % layout_.block_tokens * layout_.token_stride_bytes +
           head * layout_.head_stride_bytes;
  }
  std::byte* steps(int64_t s, int64_t layer, bool is_value, int64_t position, int64_t head) const {
    return start(s, layer, is_value, position) + layout_.scale_offset_bytes +
           position % layout_.block_tokens * layout_.scale_token_stride_bytes + head * layout_.scale_head_stride_bytes;
  }

  KvView kv() const { return {reinterpret_cast<std::byte*>(const_cast<float*>(pool_.data())), layout_}; }
  const StepBatch& batch() const { return batch_; }
  const KvLayout& layout() const { return layout_; }
  int64_t tokens() const { return batch_.num_tokens(); }
  // The memory of the pool, to compare two runs.
  std::vector<float>& pool() { return pool_; }
  bool same_pool(const TestStep& other) const {
    return pool_.size() == other.pool_.size() && std::memcmp(pool_.data(), other.pool_.data(), pool_.size() * 4) == 0;
  }
  // A batch of one sequence of this step with the query tokens [begin, end) of it. Lives as long as this.
  StepBatch part(int64_t s, int64_t begin, int64_t end) {
    const auto context = static_cast<int32_t>(context_len_[s] - batch_.query_len(s) + end);
    parts_.push_back({{0, static_cast<int32_t>(end - begin)}, {context}});
    const Part& p = parts_.back();
    const auto first = static_cast<size_t>(query_start_[s] + begin), count = static_cast<size_t>(end - begin);
    return {.tokens = batch_.tokens.subspan(first, count),
            .positions = batch_.positions.subspan(first, count),
            .query_start = p.query_start,
            .context_len = p.context_len,
            .block_table = batch_.blocks(s),
            .block_table_stride = stride_};
  }

 private:
  struct Part {
    std::vector<int32_t> query_start, context_len;
  };
  std::byte* start(int64_t s, int64_t layer, bool is_value, int64_t position) const {
    const int64_t block = batch_.blocks(s)[position / layout_.block_tokens];
    return is_value ? kv().value(block, layer) : kv().key(block, layer);
  }

  KvLayout layout_;
  std::vector<int32_t> tokens_, positions_, query_start_, context_len_;
  std::vector<int64_t> block_table_;
  int64_t stride_ = 0;
  std::vector<float> pool_;
  std::vector<Part> parts_;  // their vectors' memory stays where it is when this one grows
  StepBatch batch_;
};

}  // namespace hearth
