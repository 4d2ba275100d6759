// SPDX-License-Identifier: Apache-2.0
// PageArena: the memory of one device in physical pages, from which every buffer there is made. A buffer is a range of
// addresses of its own onto which pages are mapped: as many bytes as are free can be had in one piece, in whatever
// order others came and went.
//   I1. Pages are of kPageBytes, and of the source's smallest size for what is left of a buffer or was added to it.
//   I2. A page belongs to one buffer; it goes back to the device with it, or when the buffer ends before it.
//   I3. A resized buffer keeps its address and what is in front of both ends.
// Any thread. The source must outlive the arena, and the arena its blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

// What a device's driver does. Calls come one at a time, but for settle().
class PageSource {
 public:
  using Page = uint64_t;
  virtual ~PageSource() = default;
  virtual std::string name() const = 0;
  // The size of the smallest page, to which every other is a multiple.
  virtual Result<int64_t> least_bytes() = 0;
  // Bytes that the device has, and those that are free now.
  virtual Result<std::pair<int64_t, int64_t>> total_and_free() = 0;
  virtual Result<std::byte*> reserve(int64_t size_bytes) = 0;
  virtual void release(std::byte* at, int64_t size_bytes) = 0;
  // ResourceExhausted where the device is full.
  virtual Result<Page> create(int64_t size_bytes) = 0;
  virtual void destroy(Page page) = 0;
  virtual Status map(std::byte* at, Page page, int64_t size_bytes) = 0;
  // What is mapped in this range may be read and written from now on.
  virtual Status open(std::byte* at, int64_t size_bytes) = 0;
  // Waits until the device has done all that it was given. Called from any thread at any time, unlike the others: it
  // may wait for somebody who allocates.
  virtual void settle() = 0;
  // Of all that is mapped in this range, which no work of the device uses any more.
  virtual void unmap(std::byte* at, int64_t size_bytes) = 0;
};

class PageArena {
 public:
  static constexpr int64_t kPageBytes = int64_t{32} << 20;

  // An owned range. Empty where nothing was asked for.
  class Block {
   public:
    Block() = default;
    ~Block();
    Block(Block&& other) noexcept
        : arena_(std::exchange(other.arena_, nullptr)),
          data_(std::exchange(other.data_, nullptr)),
          size_bytes_(std::exchange(other.size_bytes_, 0)),
          reserved_bytes_(std::exchange(other.reserved_bytes_, 0)),
          mapped_bytes_(std::exchange(other.mapped_bytes_, 0)),
          pages_(std::move(other.pages_)) {}
    Block& operator=(Block&& other) noexcept {
      std::swap(arena_, other.arena_);
      std::swap(data_, other.data_);
      std::swap(size_bytes_, other.size_bytes_);
      std::swap(reserved_bytes_, other.reserved_bytes_);
      std::swap(mapped_bytes_, other.mapped_bytes_);
      std::swap(pages_, other.pages_);
      return *this;
    }

    std::byte* data() const { return data_; }
    int64_t size_bytes() const { return size_bytes_; }  // as asked for
    // Pages come behind the end, or go that lie wholly behind the new one. Errors as PageArena::allocate(), and
    // InvalidArgument beyond its limit; then nothing has changed. One thread at a time.
    Status resize(int64_t size_bytes);

   private:
    friend class PageArena;
    PageArena* arena_ = nullptr;
    std::byte* data_ = nullptr;
    int64_t size_bytes_ = 0, reserved_bytes_ = 0, mapped_bytes_ = 0;
    struct Mapped {
      PageSource::Page page;
      int64_t bytes;
    };
    std::vector<Mapped> pages_;  // one behind the other
  };

  explicit PageArena(PageSource& source) : source_(source) {}

  // Uninitialised, with addresses for `limit_bytes` if that is more. ResourceExhausted where the device has not so
  // much, with what it has and what this arena holds; then nothing is taken.
  Result<Block> allocate(int64_t size_bytes, int64_t limit_bytes = 0);
  // Bytes in pages of all blocks.
  int64_t held_bytes() const;

 private:
  Status fill(Block& block, int64_t size_bytes);
  void shrink(Block& block, int64_t size_bytes);
  void cut(Block& block, size_t pages);
  void free(Block& block);
  Error full(const Error& error, int64_t size_bytes);

  PageSource& source_;
  mutable std::mutex mutex_;
  int64_t held_bytes_ = 0, blocks_ = 0;
};

}  // namespace hearth
