// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "hearth/memory/fake_device_for_test.h"
#include "hearth/memory/memory.h"

namespace hearth {
namespace {

constexpr int64_t kLarge = 2 * kResizeStepBytes + 4096;

TEST(ResizeInSteps, KeepsWhatStays) {
  Buffer buffer = *host_memory().allocate_resizable(8192, kLarge);
  std::memset(buffer.data(), 7, 8192);
  ASSERT_TRUE(resize_in_steps(buffer, kLarge));
  EXPECT_EQ(buffer.size_bytes(), kLarge);
  buffer.data()[kLarge - 1] = std::byte{1};
  ASSERT_TRUE(resize_in_steps(buffer, 4096));
  EXPECT_EQ(buffer.size_bytes(), 4096);
  for (int64_t i = 0; i < 4096; ++i) ASSERT_EQ(buffer.data()[i], std::byte{7}) << i;
  ASSERT_TRUE(resize_in_steps(buffer, 0));
  EXPECT_EQ(buffer.size_bytes(), 0);
}

// The second step does not fit: the first is given back.
TEST(ResizeInSteps, IsAsItWasWhereItFails) {
  const testing::FakeDevice device(kResizeStepBytes + 65536);
  Buffer buffer = *device.allocate_resizable(8192, kLarge);
  const Status failed = resize_in_steps(buffer, kLarge);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(buffer.size_bytes(), 8192);
  EXPECT_EQ(device.held_bytes(), 8192);
}

TEST(ResizeInSteps, RefusesWhatCannotBeResized) {
  Buffer buffer = *host_memory().allocate(4096);
  EXPECT_EQ(resize_in_steps(buffer, 8192).error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(buffer.size_bytes(), 4096);
}

}  // namespace
}  // namespace hearth
