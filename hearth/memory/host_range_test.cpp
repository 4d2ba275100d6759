// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/host_range.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "hearth/memory/memory.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = int64_t{1} << 20;

// Pages of the range that are in memory now.
int64_t resident_bytes(const HostRange& range) {
  const auto pages = static_cast<size_t>(range.limit_bytes() / 4096);
  std::vector<unsigned char> in(pages);
  if (mincore(range.data(), pages * 4096, in.data()) != 0) return -1;
  return 4096 * std::ranges::count_if(in, [](unsigned char c) { return (c & 1) != 0; });
}

TEST(HostRange, GrowsAndShrinksWhereItIs) {
  auto range = HostRange::create(4 * kMiB, 64 * kMiB);
  ASSERT_TRUE(range) << range.error().message;
  std::byte* const at = range->data();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % HostRange::kAlignment, 0u);
  std::fill(at, at + 4 * kMiB, std::byte{7});
  ASSERT_TRUE(range->resize(64 * kMiB));
  EXPECT_EQ(range->data(), at);
  std::fill(at + 4 * kMiB, at + 64 * kMiB, std::byte{8});
  EXPECT_EQ(at[4 * kMiB - 1], std::byte{7});
  EXPECT_EQ(resident_bytes(*range), 64 * kMiB);
  ASSERT_TRUE(range->resize(2 * kMiB + 1));
  EXPECT_LE(resident_bytes(*range), 4 * kMiB);
  EXPECT_EQ(at[2 * kMiB], std::byte{7});
  ASSERT_TRUE(range->resize(8 * kMiB));
  EXPECT_EQ(at[8 * kMiB - 1], std::byte{0});  // new memory
  ASSERT_TRUE(range->resize(0));
  EXPECT_EQ(resident_bytes(*range), 0);
}

TEST(HostRange, BadSizesChangeNothing) {
  EXPECT_EQ(HostRange::create(0, -1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(HostRange::create(2, 1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(HostRange::create(0, std::numeric_limits<int64_t>::max()).error().code, ErrorCode::kResourceExhausted);
  // Twice what there is. (The thread sanitizer has no addresses for much more.)
  const int64_t too_much = 2 * host_memory().available_bytes().value() / kMiB * kMiB;
  auto range = HostRange::create(kMiB, too_much);
  ASSERT_TRUE(range) << range.error().message;
  EXPECT_EQ(range->resize(-1).error().code, ErrorCode::kInvalidArgument);
  const Status huge = range->resize(too_much);
  EXPECT_EQ(huge.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(huge.error().message, HasSubstr("available"));
  EXPECT_EQ(range->size_bytes(), kMiB);
  range->data()[kMiB - 1] = std::byte{1};
  EXPECT_EQ(HostRange::create(0, 0)->data(), nullptr);
}

TEST(HostRange, IsABufferThatCanBeResized) {
  auto buffer = host_memory().allocate_resizable(100, kMiB);
  ASSERT_TRUE(buffer) << buffer.error().message;
  Buffer moved = std::move(*buffer);
  ASSERT_TRUE(moved.resize(kMiB));
  EXPECT_EQ(moved.size_bytes(), kMiB);
  EXPECT_EQ(moved.resize(kMiB + 1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(moved.size_bytes(), kMiB);
  auto fixed = host_memory().allocate(100);
  ASSERT_TRUE(fixed);
  EXPECT_THAT(fixed->resize(50).error().message, HasSubstr("a buffer of 100 bytes cannot be resized"));
}

}  // namespace
}  // namespace hearth
