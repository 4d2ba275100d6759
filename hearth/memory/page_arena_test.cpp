// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/page_arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "hearth/base/random.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20, kLeast = 2 * kMiB, kPage = PageArena::kPageBytes;

// A device of numbers: pages with sizes, addresses that nobody follows. Notes every misuse.
class FakePages : public PageSource {
 public:
  explicit FakePages(int64_t total) : free_(total), total_(total) {}

  std::string name() const override { return "fake"; }
  Result<int64_t> least_bytes() override { return kLeast; }
  Result<std::pair<int64_t, int64_t>> total_and_free() override { return std::pair(total_, free_); }
  Result<std::byte*> reserve(int64_t size_bytes) override {
    const int64_t at = next_;
    next_ += (size_bytes + kPage - 1) / kPage * kPage;
    ranges_[at] = size_bytes;
    return reinterpret_cast<std::byte*>(at);
  }
  void release(std::byte* at, int64_t size_bytes) override {
    const auto range = ranges_.find(reinterpret_cast<int64_t>(at));
    ASSERT_TRUE(range != ranges_.end() && range->second == size_bytes);
    const auto mapped = mapped_.lower_bound(range->first);
    EXPECT_TRUE(mapped == mapped_.end() || mapped->first >= range->first + size_bytes) << "still mapped";
    ranges_.erase(range);
  }
  Result<Page> create(int64_t size_bytes) override {
    if (size_bytes % kLeast != 0 || fails_in == 0) return internal_error("page of {} bytes", size_bytes);
    if (fails_in > 0) --fails_in;
    if (size_bytes > free_) return resource_exhausted("no page of {} bytes", size_bytes);
    free_ -= size_bytes;
    pages_[++last_] = size_bytes;
    return last_;
  }
  void destroy(Page page) override {
    ASSERT_TRUE(pages_.contains(page));
    for (const auto& [at, other] : mapped_) EXPECT_NE(other, page) << "still mapped";
    free_ += pages_[page];
    pages_.erase(page);
  }
  Status map(std::byte* at, Page page, int64_t size_bytes) override {
    EXPECT_EQ(pages_.at(page), size_bytes);
    if (maps_fail) return internal_error("map");
    EXPECT_TRUE(mapped_.emplace(reinterpret_cast<int64_t>(at), page).second);
    return {};
  }
  Status open(std::byte* at, int64_t size_bytes) override {
    EXPECT_EQ(mapped_in(at, size_bytes), size_bytes) << "a hole";
    opened_.insert(at);
    return {};
  }
  void settle() override {
    if (when_settling) when_settling();
    settled_ = true;
  }
  void unmap(std::byte* at, int64_t size_bytes) override {
    EXPECT_TRUE(std::exchange(settled_, false) || !opened_.contains(at)) << "work may still use it";
    opened_.erase(at);
    EXPECT_EQ(mapped_in(at, size_bytes), size_bytes) << "a hole";
    const int64_t begin = reinterpret_cast<int64_t>(at);
    mapped_.erase(mapped_.lower_bound(begin), mapped_.lower_bound(begin + size_bytes));
  }

  int64_t free() const { return free_; }
  size_t pages() const { return pages_.size(); }
  bool empty() const { return pages_.empty() && ranges_.empty() && mapped_.empty(); }
  int fails_in = -1;  // calls of create() from now
  bool maps_fail = false;
  std::function<void()> when_settling;

 private:
  // Bytes from `at` without a hole.
  int64_t mapped_in(std::byte* at, int64_t size_bytes) const {
    int64_t bytes = 0;
    for (auto it = mapped_.find(reinterpret_cast<int64_t>(at)); it != mapped_.end() && bytes < size_bytes; ++it) {
      if (it->first != reinterpret_cast<int64_t>(at) + bytes) break;
      bytes += pages_.at(it->second);
    }
    return bytes;
  }

  int64_t free_;
  const int64_t total_;
  int64_t next_ = kPage;
  Page last_ = 0;
  std::map<Page, int64_t> pages_;
  std::map<int64_t, int64_t> ranges_;  // address to bytes
  std::map<int64_t, Page> mapped_;     // by address
  std::set<std::byte*> opened_;
  bool settled_ = false;
};

TEST(PageArena, LargePagesAndSmallOnesForTheRest) {
  FakePages device(int64_t{1} << 30);
  PageArena arena(device);
  {
    const auto block = arena.allocate(2 * kPage + 3 * kMiB);
    ASSERT_TRUE(block) << block.error().message;
    EXPECT_EQ(block->size_bytes(), 2 * kPage + 3 * kMiB);
    EXPECT_EQ(device.pages(), 4u);
    EXPECT_EQ(arena.held_bytes(), 2 * kPage + 4 * kMiB);
    const auto one = arena.allocate(1);
    EXPECT_EQ(arena.held_bytes(), 2 * kPage + 6 * kMiB);
    EXPECT_NE(one->data(), block->data());
    const auto none = arena.allocate(0);
    ASSERT_TRUE(none);
    EXPECT_EQ(none->data(), nullptr);
  }
  EXPECT_EQ(arena.held_bytes(), 0);
  EXPECT_TRUE(device.empty());
}

// Whoever goes may have to wait for somebody who allocates.
TEST(PageArena, WaitsForTheDeviceWithoutTheLock) {
  FakePages device(int64_t{1} << 30);
  PageArena arena(device);
  int64_t held = -1;
  {
    const auto block = arena.allocate(kMiB);
    ASSERT_TRUE(block) << block.error().message;
    device.when_settling = [&] { held = arena.held_bytes(); };
  }
  EXPECT_EQ(held, kLeast);
  EXPECT_EQ(arena.held_bytes(), 0);
  EXPECT_TRUE(device.empty());
}

TEST(PageArena, MovesKeepOneOwner) {
  FakePages device(int64_t{1} << 30);
  PageArena arena(device);
  PageArena::Block first = *arena.allocate(kPage), second = *arena.allocate(kMiB);
  std::byte* const at = first.data();
  second = std::move(first);
  EXPECT_EQ(second.data(), at);
  first = PageArena::Block();
  EXPECT_EQ(second.data(), at);
  PageArena::Block third(std::move(second));
  EXPECT_EQ(third.data(), at);
  EXPECT_EQ(second.data(), nullptr);
  third = PageArena::Block();
  EXPECT_EQ(second.size_bytes(), 0);
}

TEST(PageArena, AllThatIsFreeCanBeHadInOnePiece) {
  FakePages device(16 * kPage);
  PageArena arena(device);
  std::vector<PageArena::Block> blocks;
  for (int i = 0; i < 16; ++i) blocks.push_back(*arena.allocate(kPage));
  for (int i = 0; i < 16; i += 2) blocks[static_cast<size_t>(i)] = PageArena::Block();
  EXPECT_TRUE(arena.allocate(8 * kPage));
}

TEST(PageArena, AFullDeviceLosesNothing) {
  FakePages device(10 * kPage);
  PageArena arena(device);
  const PageArena::Block kept = *arena.allocate(7 * kPage);
  const auto too_large = arena.allocate(4 * kPage);
  ASSERT_FALSE(too_large);
  EXPECT_EQ(too_large.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(too_large.error().message, HasSubstr(fmt::format("fake: {} bytes do not fit", 4 * kPage)));
  EXPECT_THAT(too_large.error().message,
              HasSubstr(fmt::format("it has {} bytes, {} of them free, and this process holds {} in 1 buffers",
                                    10 * kPage, 3 * kPage, 7 * kPage)));
  EXPECT_EQ(device.free(), 3 * kPage);
  EXPECT_EQ(arena.allocate(int64_t{1} << 62).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(arena.allocate(-1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(arena.allocate(3 * kPage));
}

TEST(PageArena, AFailureHalfWayGivesAllBack) {
  FakePages device(int64_t{1} << 30);
  PageArena arena(device);
  device.fails_in = 3;
  EXPECT_EQ(arena.allocate(5 * kPage).error().code, ErrorCode::kInternal);
  EXPECT_TRUE(device.empty());
  device.fails_in = -1;
  device.maps_fail = true;
  EXPECT_EQ(arena.allocate(5 * kPage).error().code, ErrorCode::kInternal);
  EXPECT_TRUE(device.empty());
  EXPECT_EQ(arena.held_bytes(), 0);
}

// I3.
TEST(PageArena, ABufferGrowsAndShrinksWhereItIs) {
  FakePages device(10 * kPage);
  PageArena arena(device);
  {
    PageArena::Block block = *arena.allocate(2 * kPage, 8 * kPage);
    std::byte* const at = block.data();
    ASSERT_TRUE(block.resize(5 * kPage + kMiB));
    EXPECT_EQ(block.data(), at);
    EXPECT_EQ(block.size_bytes(), 5 * kPage + kMiB);
    EXPECT_EQ(arena.held_bytes(), 5 * kPage + kLeast);
    EXPECT_EQ(device.pages(), 6u);
    // A page goes once all of it lies behind the end.
    ASSERT_TRUE(block.resize(3 * kPage + 1));
    EXPECT_EQ(arena.held_bytes(), 4 * kPage);
    ASSERT_TRUE(block.resize(3 * kPage + 2));
    EXPECT_EQ(arena.held_bytes(), 4 * kPage);
    ASSERT_TRUE(block.resize(0));
    EXPECT_EQ(device.free(), 10 * kPage);
    ASSERT_TRUE(block.resize(8 * kPage));
    EXPECT_EQ(block.resize(8 * kPage + 1).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(block.resize(-1).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(block.size_bytes(), 8 * kPage);
  }
  EXPECT_TRUE(device.empty());
  EXPECT_EQ(arena.held_bytes(), 0);
}

TEST(PageArena, AFailureWhileGrowingChangesNothing) {
  FakePages device(10 * kPage);
  PageArena arena(device);
  const PageArena::Block other = *arena.allocate(5 * kPage);
  PageArena::Block block = *arena.allocate(2 * kPage, 20 * kPage);
  EXPECT_EQ(block.resize(6 * kPage).error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(block.size_bytes(), 2 * kPage);
  EXPECT_EQ(device.free(), 3 * kPage);
  device.fails_in = 2;
  EXPECT_EQ(block.resize(5 * kPage).error().code, ErrorCode::kInternal);
  device.fails_in = -1;
  EXPECT_EQ(device.free(), 3 * kPage);
  EXPECT_EQ(arena.held_bytes(), 7 * kPage);
  EXPECT_TRUE(block.resize(5 * kPage));
}

TEST(PageArena, ComingAndGoing) {
  const uint64_t seed = 3;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Random random(seed);
  FakePages device(64 * kPage);
  PageArena arena(device);
  std::vector<PageArena::Block> blocks(12);
  for (int i = 0; i < 3000; ++i) {
    PageArena::Block& block = blocks[static_cast<size_t>(random.below(12))];
    block = PageArena::Block();
    const int64_t bytes = static_cast<int64_t>(random.below(static_cast<uint64_t>(12 * kPage)));
    const int64_t pages = (bytes + kLeast - 1) / kLeast * kLeast, free = device.free();
    auto made = arena.allocate(bytes);
    ASSERT_EQ(static_cast<bool>(made), pages <= free) << bytes << " of " << free;
    if (made) block = *std::move(made);
    ASSERT_EQ(arena.held_bytes() + device.free(), 64 * kPage);
    if (!made || random.below(2) == 0) continue;
    const int64_t end = static_cast<int64_t>(random.below(static_cast<uint64_t>(bytes + 1)));
    ASSERT_TRUE(block.resize(end));
    ASSERT_EQ(arena.held_bytes() + device.free(), 64 * kPage);
    if (random.below(2) == 0) {
      ASSERT_TRUE(block.resize(bytes));  // what it gave back is free
    }
  }
}

}  // namespace
}  // namespace hearth
