// SPDX-License-Identifier: Apache-2.0
// HostBuffer's invariants and the limits that it respects, the latter against handmade proc/ and sys/ trees.
#include "hearth/memory/host_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TEST(HostBuffer, I1IsAlignedAndWritableAtEverySize) {
  for (int64_t size : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{65}, int64_t{4097}, HostBuffer::kHugePageBytes - 1,
                       HostBuffer::kHugePageBytes, HostBuffer::kHugePageBytes + 1, 3 * HostBuffer::kHugePageBytes}) {
    auto buffer = HostBuffer::allocate(size);
    ASSERT_TRUE(buffer) << size;
    EXPECT_EQ(buffer->size_bytes(), size);
    EXPECT_EQ(static_cast<int64_t>(buffer->bytes().size()), size);
    const int64_t alignment = size >= HostBuffer::kHugePageBytes ? HostBuffer::kHugePageBytes : HostBuffer::kAlignment;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % static_cast<uintptr_t>(alignment), 0u) << size;
    std::ranges::fill(buffer->bytes(), std::byte{0xA5});
    EXPECT_EQ(buffer->bytes().back(), std::byte{0xA5});
  }
}

TEST(HostBuffer, ZeroBytesAreLegal) {
  auto buffer = HostBuffer::allocate(0);
  ASSERT_TRUE(buffer);
  EXPECT_TRUE(buffer->bytes().empty());
}

TEST(HostBuffer, I2MovingKeepsTheAddress) {
  auto first = HostBuffer::allocate(128);
  ASSERT_TRUE(first);
  HostBuffer a = std::move(*first);
  std::byte* const address = a.data();
  HostBuffer b = std::move(a);
  EXPECT_EQ(b.data(), address);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: what a moved-from buffer is, is part of the contract
  EXPECT_EQ(a.size_bytes(), 0);
  HostBuffer c;
  c = std::move(b);
  EXPECT_EQ(c.data(), address);
  EXPECT_EQ(c.size_bytes(), 128);
}

TEST(HostBuffer, RefusesWhatTheMachineCannotHold) {
  for (int64_t size : {int64_t{1} << 50, std::numeric_limits<int64_t>::max()}) {
    const auto buffer = HostBuffer::allocate(size);
    ASSERT_FALSE(buffer);
    EXPECT_EQ(buffer.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(buffer.error().message, HasSubstr(std::to_string(size) + " bytes"));
  }
  const auto negative = HostBuffer::allocate(-1);
  ASSERT_FALSE(negative);
  EXPECT_EQ(negative.error().code, ErrorCode::kInvalidArgument);
}

class AvailableBytes : public ::testing::Test {
 protected:
  AvailableBytes() {
    root_ = fs::path(::testing::TempDir()) /
            ("hearth_memory_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~AvailableBytes() override { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  fs::path root_;
};

TEST_F(AvailableBytes, IsUnlimitedWhereNothingIsKnown) {
  EXPECT_EQ(available_host_bytes(root_), std::numeric_limits<int64_t>::max());
}

TEST_F(AvailableBytes, AddsFreeSwapToMemAvailable) {
  put("proc/meminfo", "MemTotal:       2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\nSwapFree:  24 kB\n");
  EXPECT_EQ(available_host_bytes(root_), 1024 * 1024);
}

TEST_F(AvailableBytes, RespectsEveryControlGroupAbove) {
  put("proc/meminfo", "MemAvailable: 1000000 kB\n");
  put("proc/self/cgroup", "0::/outer/inner\n");
  put("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  put("sys/fs/cgroup/outer/inner/memory.current", "70\n");
  EXPECT_EQ(available_host_bytes(root_), 1'024'000'000);
  put("sys/fs/cgroup/outer/memory.max", "1000\n");
  put("sys/fs/cgroup/outer/memory.current", "700\n");
  put("sys/fs/cgroup/outer/memory.stat", "anon 500\ninactive_file 120\nactive_file 80\n");
  EXPECT_EQ(available_host_bytes(root_), 1000 - (700 - 200));
  put("sys/fs/cgroup/outer/inner/memory.max", "100\n");
  EXPECT_EQ(available_host_bytes(root_), 30);
  put("sys/fs/cgroup/outer/inner/memory.current", "170\n");
  EXPECT_EQ(available_host_bytes(root_), 0);
}

TEST_F(AvailableBytes, ReadsVersion1AtTheMountWhereTheGroupIsTheHosts) {
  put("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/kubepods/pod\n0::/\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n");
  put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100\ntotal_active_file 0\n");
  EXPECT_EQ(available_host_bytes(root_), 2100);
}

TEST(AvailableBytesOfThisMachine, IsPositive) { EXPECT_GT(available_host_bytes(), 0); }

}  // namespace
}  // namespace hearth
