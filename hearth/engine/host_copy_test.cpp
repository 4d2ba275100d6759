// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/host_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "hearth/base/random.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

using ::testing::HasSubstr;

class HostCopies : public ::testing::Test {
 protected:
  // Of so many bytes, seeded.
  void fill(int64_t bytes) {
    Buffer buffer = *device_.allocate(bytes);
    memory_ = std::move(buffer);
    Random random(kSeed);
    wanted_.resize(static_cast<size_t>(bytes));
    for (std::byte& b : wanted_) b = static_cast<std::byte>(random.below(256));
    std::memcpy(memory_.data(), wanted_.data(), wanted_.size());
  }
  std::span<const std::byte> bytes() const { return {memory_.data(), wanted_.size()}; }

  static constexpr uint64_t kSeed = 5;
  testing::FakeDevice device_{int64_t{1} << 28};
  Buffer memory_;
  std::vector<std::byte> wanted_;
};

TEST_F(HostCopies, BringBackEveryByte) {
  for (const int64_t size : {int64_t{1}, HostCopy::kPieceBytes, 2 * HostCopy::kPieceBytes + 17}) {
    SCOPED_TRACE(::testing::Message() << size << " bytes, seed " << kSeed);
    fill(size);
    const Result<HostCopy> copy = HostCopy::take(device_, bytes());
    ASSERT_TRUE(copy) << copy.error().message;
    EXPECT_EQ(copy->size_bytes(), size);
    std::memset(memory_.data(), 0, wanted_.size());
    ASSERT_TRUE(copy->put_back(memory_.data()));
    EXPECT_EQ(std::memcmp(memory_.data(), wanted_.data(), wanted_.size()), 0);
  }
}

TEST_F(HostCopies, SayWhatFailed) {
  fill(2 * HostCopy::kPieceBytes);
  device_.failing_copy_bytes = HostCopy::kPieceBytes;
  device_.failing_copies = 1;
  const Result<HostCopy> failed = HostCopy::take(device_, bytes());
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr("copy"));
  const Result<HostCopy> copy = HostCopy::take(device_, bytes());
  ASSERT_TRUE(copy) << copy.error().message;
  device_.failing_copies = 1;
  EXPECT_FALSE(copy->put_back(memory_.data()));
  ASSERT_TRUE(copy->put_back(memory_.data()));
  EXPECT_EQ(std::memcmp(memory_.data(), wanted_.data(), wanted_.size()), 0);
}

}  // namespace
}  // namespace hearth
