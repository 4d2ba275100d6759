// SPDX-License-Identifier: Apache-2.0
// Blocks of one size: a stack of the free ones and a count of references for each.
#include "hearth/kv/block_pool.h"

#include "hearth/base/check.h"

namespace hearth {

FixedBlockPool::FixedBlockPool(int64_t block_bytes, int64_t blocks)
    : block_bytes_(block_bytes), references_(static_cast<size_t>(blocks), 0) {
  HEARTH_CHECK(block_bytes > 0, "blocks of {} bytes", block_bytes);
  free_.reserve(references_.size());
  for (int64_t b = blocks - 1; b >= 0; --b) free_.push_back(b * block_bytes);
}

size_t FixedBlockPool::index(int64_t offset_bytes) const {
  HEARTH_CHECK(offset_bytes >= 0 && offset_bytes % block_bytes_ == 0 && offset_bytes / block_bytes_ < total(),
               "KV offset {} is no block of {} bytes among {}", offset_bytes, block_bytes_, total());
  return static_cast<size_t>(offset_bytes / block_bytes_);
}

std::optional<int64_t> FixedBlockPool::allocate() {
  if (free_.empty()) return std::nullopt;
  const int64_t offset = free_.back();
  free_.pop_back();
  references_[index(offset)] = 1;
  return offset;
}

void FixedBlockPool::retain(int64_t offset_bytes) {
  int32_t& count = references_[index(offset_bytes)];
  HEARTH_CHECK(count > 0, "KV block at {} retained while free", offset_bytes);
  ++count;
}

void FixedBlockPool::release(int64_t offset_bytes) {
  int32_t& count = references_[index(offset_bytes)];
  HEARTH_CHECK(count > 0, "KV block at {} released while free", offset_bytes);
  if (--count == 0) free_.push_back(offset_bytes);
}

}  // namespace hearth
