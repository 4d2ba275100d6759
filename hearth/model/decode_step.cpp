// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/decode_step.h"

#include <algorithm>

namespace hearth {
namespace {

void insert_sorted(std::vector<int64_t>& values, int64_t value) {
  const auto at = std::ranges::lower_bound(values, value);
  if (at == values.end() || *at != value) values.insert(at, value);
}

}  // namespace

std::vector<int64_t> decode_batches(int64_t largest) {
  std::vector<int64_t> batches;
  for (int64_t n = 1; n < largest; n += n < 4 ? n : n < 8 ? 4 : n < 64 ? 8 : n < 256 ? 16 : 64) batches.push_back(n);
  if (largest > 0) batches.push_back(largest);
  return batches;
}

std::vector<int64_t> decode_contexts(int64_t largest) {
  std::vector<int64_t> contexts;
  for (int64_t n = 1024; n < largest; n *= 4) contexts.push_back(n);
  if (largest > 0) contexts.push_back(largest);
  return contexts;
}

void DecodeSteps::add(Entry entry) {
  insert_sorted(batches_, entry.shape.sequences);
  insert_sorted(contexts_, entry.shape.max_context);
  const std::pair key(entry.shape.sequences, entry.shape.max_context);
  entries_.insert_or_assign(key, std::move(entry));
}

DecodeSteps::Entry* DecodeSteps::find(const StepBatch& step, const KvView& kv) {
  const int64_t sequences = step.num_sequences();
  if (entries_.empty() || kv.base != kv_.base || kv.dummy_block != kv_.dummy_block) return nullptr;
  if (step.num_tokens() != sequences || std::ssize(step.logit_rows) != sequences) return nullptr;
  // As many tokens as sequences, but are they one each?
  for (int64_t s = 0; s < sequences; ++s)
    if (step.query_len(s) != 1) return nullptr;
  const auto batch = std::ranges::lower_bound(batches_, sequences);
  const auto context = std::ranges::lower_bound(contexts_, step.planned_context());
  if (batch == batches_.end() || context == contexts_.end()) return nullptr;
  const auto found = entries_.find({*batch, *context});
  return found == entries_.end() ? nullptr : &found->second;
}

}  // namespace hearth
