// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/page_arena.h"

#include <algorithm>

namespace hearth {

PageArena::Block::~Block() {
  if (arena_ != nullptr) arena_->free(*this);
}

Result<PageArena::Block> PageArena::allocate(int64_t size_bytes) {
  if (size_bytes < 0) return invalid_argument("{} memory: {} bytes, wanted at least 0", source_.name(), size_bytes);
  if (size_bytes == 0) return Block();
  const std::lock_guard lock(mutex_);
  HEARTH_TRY_ASSIGN(const int64_t least, source_.least_bytes());
  HEARTH_TRY_ASSIGN(const auto total_and_free, source_.total_and_free());
  // Before pages are taken that others may want, and before the sum below could overflow.
  if (size_bytes > total_and_free.second)
    return full(Error{ErrorCode::kResourceExhausted, "more than is free"}, size_bytes);
  Block block;
  block.size_bytes_ = size_bytes;
  block.reserved_bytes_ = (size_bytes + least - 1) / least * least;
  HEARTH_TRY_ASSIGN(block.data_, source_.reserve(block.reserved_bytes_));
  if (Status filled = fill(block, least); !filled) {
    const int64_t mapped = std::exchange(block.reserved_bytes_, 0);
    source_.release(std::exchange(block.data_, nullptr), mapped);
    if (filled.error().code == ErrorCode::kResourceExhausted) return full(filled.error(), size_bytes);
    return std::move(filled).error();
  }
  block.arena_ = this;
  held_bytes_ += block.reserved_bytes_;
  ++blocks_;
  return block;
}

// All of the block's range gets pages, or none.
Status PageArena::fill(Block& block, int64_t least_bytes) {
  const int64_t page_bytes = std::max(least_bytes, kPageBytes / least_bytes * least_bytes);
  int64_t at = 0;
  const auto take = [&]() -> Status {
    while (at < block.reserved_bytes_) {
      const int64_t bytes = block.reserved_bytes_ - at >= page_bytes ? page_bytes : least_bytes;
      HEARTH_TRY_ASSIGN(const PageSource::Page page, source_.create(bytes));
      if (Status mapped = source_.map(block.data_ + at, page, bytes); !mapped) {
        source_.destroy(page);
        return mapped;
      }
      block.pages_.push_back(page);
      at += bytes;
    }
    return source_.open(block.data_, block.reserved_bytes_);
  };
  Status taken = take();
  if (!taken) {
    if (at > 0) source_.unmap(block.data_, at);
    for (const PageSource::Page page : block.pages_) source_.destroy(page);
    block.pages_.clear();
  }
  return taken;
}

void PageArena::free(Block& block) {
  source_.settle();  // as cudaFree does: nothing that is still under way may use the range
  const std::lock_guard lock(mutex_);
  source_.unmap(block.data_, block.reserved_bytes_);
  for (const PageSource::Page page : block.pages_) source_.destroy(page);
  source_.release(block.data_, block.reserved_bytes_);
  held_bytes_ -= block.reserved_bytes_;
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
