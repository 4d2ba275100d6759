// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/page_arena.h"

#include <algorithm>
#include <limits>

namespace hearth {

PageArena::Block::~Block() {
  if (arena_ != nullptr) arena_->free(*this);
}

Result<PageArena::Block> PageArena::allocate(int64_t size_bytes, int64_t limit_bytes) {
  if (size_bytes < 0) return invalid_argument("{} memory: {} bytes, wanted at least 0", source_.name(), size_bytes);
  limit_bytes = std::max(size_bytes, limit_bytes);
  if (limit_bytes == 0) return Block();
  const std::lock_guard lock(mutex_);
  HEARTH_TRY_ASSIGN(const int64_t least, source_.least_bytes());
  HEARTH_TRY_ASSIGN(const auto total_and_free, source_.total_and_free());
  // Before pages are taken that others may want, and before the sum below could overflow.
  if (size_bytes > total_and_free.second || limit_bytes > std::numeric_limits<int64_t>::max() - least)
    return full(Error{ErrorCode::kResourceExhausted, "more than is free"}, size_bytes);
  Block block;
  block.reserved_bytes_ = (limit_bytes + least - 1) / least * least;
  HEARTH_TRY_ASSIGN(block.data_, source_.reserve(block.reserved_bytes_));
  if (Status filled = fill(block, size_bytes); !filled) {
    const int64_t reserved = std::exchange(block.reserved_bytes_, 0);
    source_.release(std::exchange(block.data_, nullptr), reserved);
    if (filled.error().code == ErrorCode::kResourceExhausted) return full(filled.error(), size_bytes);
    return std::move(filled).error();
  }
  block.arena_ = this;
  ++blocks_;
  return block;
}

Status PageArena::Block::resize(int64_t size_bytes) {
  if (size_bytes < 0 || size_bytes > reserved_bytes_)
    return invalid_argument("device memory: {} bytes of a range of {}; wanted 0 to that", size_bytes, reserved_bytes_);
  if (arena_ == nullptr) return {};
  if (size_bytes < size_bytes_) {
    arena_->shrink(*this, size_bytes);
    return {};
  }
  const std::lock_guard lock(arena_->mutex_);
  Status filled = arena_->fill(*this, size_bytes);
  if (!filled && filled.error().code == ErrorCode::kResourceExhausted)
    return arena_->full(filled.error(), size_bytes - size_bytes_);
  return filled;
}

// The block's first bytes get the pages that they do not have, or none.
Status PageArena::fill(Block& block, int64_t size_bytes) {
  HEARTH_TRY_ASSIGN(const int64_t least, source_.least_bytes());
  const int64_t page_bytes = std::max(least, kPageBytes / least * least);
  const int64_t end = (size_bytes + least - 1) / least * least, begin = block.mapped_bytes_;
  const size_t pages = block.pages_.size();
  const auto take = [&]() -> Status {
    while (block.mapped_bytes_ < end) {
      const int64_t bytes = end - block.mapped_bytes_ >= page_bytes ? page_bytes : least;
      HEARTH_TRY_ASSIGN(const PageSource::Page page, source_.create(bytes));
      if (Status mapped = source_.map(block.data_ + block.mapped_bytes_, page, bytes); !mapped) {
        source_.destroy(page);
        return mapped;
      }
      block.pages_.push_back({page, bytes});
      block.mapped_bytes_ += bytes;
      held_bytes_ += bytes;
    }
    return end > begin ? source_.open(block.data_ + begin, end - begin) : Status();
  };
  Status taken = take();
  if (taken) {
    block.size_bytes_ = size_bytes;
  } else {
    cut(block, pages);
  }
  return taken;
}

// All behind the first `pages` go.
void PageArena::cut(Block& block, size_t pages) {
  int64_t bytes = 0;
  for (size_t i = pages; i < block.pages_.size(); ++i) bytes += block.pages_[i].bytes;
  if (bytes == 0) return;
  block.mapped_bytes_ -= bytes;
  held_bytes_ -= bytes;
  source_.unmap(block.data_ + block.mapped_bytes_, bytes);
  for (size_t i = pages; i < block.pages_.size(); ++i) source_.destroy(block.pages_[i].page);
  block.pages_.resize(pages);
}

void PageArena::shrink(Block& block, int64_t size_bytes) {
  block.size_bytes_ = size_bytes;
  size_t pages = block.pages_.size();
  for (int64_t end = block.mapped_bytes_; pages > 0 && end - block.pages_[pages - 1].bytes >= size_bytes; --pages)
    end -= block.pages_[pages - 1].bytes;
  if (pages == block.pages_.size()) return;
  source_.settle();  // as cudaFree does: nothing that is still under way may use the range
  const std::lock_guard lock(mutex_);
  cut(block, pages);
}

void PageArena::free(Block& block) {
  shrink(block, 0);
  const std::lock_guard lock(mutex_);
  source_.release(block.data_, block.reserved_bytes_);
  --blocks_;
  block.arena_ = nullptr;
}

Error PageArena::full(const Error& error, int64_t size_bytes) {
  std::string has;
  if (const auto bytes = source_.total_and_free())
    has = fmt::format("; it has {} bytes, {} of them free, and this process holds {} in {} buffers", bytes->first,
                      bytes->second, held_bytes_, blocks_);
  return {ErrorCode::kResourceExhausted,
          fmt::format("{}: {} bytes do not fit ({}){}", source_.name(), size_bytes, error.message, has), error.where};
}

int64_t PageArena::held_bytes() const {
  const std::lock_guard lock(mutex_);
  return held_bytes_;
}

}  // namespace hearth
