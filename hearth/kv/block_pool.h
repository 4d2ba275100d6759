// SPDX-License-Identifier: Apache-2.0
// Who has which KV block. Only numbers: a block is the byte offset of its start from the base of a memory that
// somebody else owns. KvBlocks is all that the engine knows of KV memory; FixedBlockPool is its plainest form,
// blocks of one size in one piece of memory.
// One owning thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace hearth {

class KvBlocks {
 public:
  virtual ~KvBlocks() = default;

  // The most blocks that this model can have at once.
  virtual int64_t total() const = 0;
  // Blocks that allocate() would give now.
  virtual int64_t available() const = 0;
  // Whether the block has more than one reference. REQUIRES: it has one.
  virtual bool shared(int64_t offset_bytes) const = 0;

  // A block with one reference, by its offset; nullopt where none is left.
  virtual std::optional<int64_t> allocate() = 0;
  // One reference more, for another sequence that reads the block. REQUIRES: it has one.
  virtual void retain(int64_t offset_bytes) = 0;
  // One reference less; with the last one the block is free. REQUIRES: it has one.
  virtual void release(int64_t offset_bytes) = 0;
};

// I1. References of all blocks = retains + allocations - releases; a block is free exactly at 0.
// I2. A block is given out to one allocate() at a time.
class FixedBlockPool final : public KvBlocks {
 public:
  // REQUIRES: block_bytes > 0, blocks >= 0.
  FixedBlockPool(int64_t block_bytes, int64_t blocks);

  int64_t total() const override { return static_cast<int64_t>(references_.size()); }
  int64_t available() const override { return static_cast<int64_t>(free_.size()); }
  bool shared(int64_t offset_bytes) const override { return references_[index(offset_bytes)] > 1; }
  std::optional<int64_t> allocate() override;
  void retain(int64_t offset_bytes) override;
  void release(int64_t offset_bytes) override;

 private:
  size_t index(int64_t offset_bytes) const;

  int64_t block_bytes_;
  std::vector<int32_t> references_;  // by block
  std::vector<int64_t> free_;        // offsets; the last freed is the next given: its memory is warm
};

}  // namespace hearth
