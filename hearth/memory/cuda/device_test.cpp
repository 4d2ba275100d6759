// SPDX-License-Identifier: Apache-2.0
// What holds on every machine, with a GPU or without; the rest is tested with the ops, on a GPU.
#include "hearth/memory/cuda/device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/cuda_status.h"

namespace hearth {
namespace {

TEST(Cuda, AMachineWithoutAGpuSaysSo) {
  const auto count = cuda_device_count();
  if (count) {
    EXPECT_GE(*count, 1);
    EXPECT_TRUE(Stream::create());
    EXPECT_TRUE(check_cuda_device()) << check_cuda_device().error().message;
    return;
  }
  const Status missing = check_cuda_device();
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kUnavailable);
  const std::string& message = missing.error().message;
  EXPECT_TRUE(message.starts_with("no NVIDIA driver") || message.starts_with("no GPU")) << message;
  EXPECT_EQ(count.error().code, ErrorCode::kUnavailable) << count.error().message;
  EXPECT_EQ(count.error().message, message);
  const auto stream = Stream::create();
  ASSERT_FALSE(stream);
  EXPECT_EQ(stream.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(DeviceBuffer::allocate(1024).error().code, ErrorCode::kUnavailable);
}

TEST(Cuda, OneGpuIsChosenForTheProcess) {
  EXPECT_EQ(cuda_device(), 0);
  const auto count = cuda_device_count();
  if (!count) {
    EXPECT_EQ(choose_cuda_device(0).error().code, ErrorCode::kUnavailable);
    return;
  }
  const Status none = choose_cuda_device(*count);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(none.error().message, fmt::format("GPU {}: this process sees {}, numbered from 0", *count, *count));
  EXPECT_FALSE(choose_cuda_device(-1));
  ASSERT_TRUE(Stream::create());
  EXPECT_TRUE(choose_cuda_device(0)) << "the same that the stream is on";
  if (*count > 1) {
    EXPECT_EQ(choose_cuda_device(1).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Cuda, ErrorsGetTheirCodes) {
  // Numbers of cudaError_t: out of memory, no device, old driver, illegal address, launch failure, value.
  EXPECT_EQ(cuda_error(2, "call").code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(cuda_error(100, "call").code, ErrorCode::kUnavailable);
  EXPECT_EQ(cuda_error(35, "call").code, ErrorCode::kUnavailable);
  EXPECT_EQ(cuda_error(700, "call").code, ErrorCode::kDeviceLost);
  EXPECT_EQ(cuda_error(719, "call").code, ErrorCode::kDeviceLost);
  EXPECT_EQ(cuda_error(1, "call").code, ErrorCode::kInternal);
  const Error error = cuda_error(2, "cudaMalloc(&p, 5)");
  EXPECT_EQ(error.message, "cudaMalloc(&p, 5): out of memory (cudaErrorMemoryAllocation)");
  EXPECT_NE(std::string(error.where.file).find("device_test.cpp"), std::string::npos);
}

TEST(Cuda, TryReturnsTheErrorWithItsLine) {
  const auto fails = []() -> Status {
    HEARTH_CUDA_TRY(700);
    return {};
  };
  const auto passes = []() -> Status {
    HEARTH_CUDA_TRY(0);
    return {};
  };
  EXPECT_EQ(fails().error().code, ErrorCode::kDeviceLost);
  EXPECT_GT(fails().error().where.line, 40);
  EXPECT_TRUE(passes());
}

TEST(Cuda, EmptyOwnersAreLegal) {
  EXPECT_EQ(DeviceBuffer::allocate(0)->size_bytes(), 0);
  EXPECT_EQ(DeviceBuffer::allocate(-1).error().code, ErrorCode::kInvalidArgument);
  DeviceBuffer a, b = std::move(a);
  Stream s, t = std::move(s);
  EXPECT_EQ(b.data(), nullptr);
  EXPECT_EQ(t.handle(), nullptr);
}

// Recordings of copies from buffer to buffer, beside a thread that frees.
class CudaRecordings : public ::testing::Test {
 protected:
  static constexpr int kBuffers = 8, kBytes = 3 << 20;

  void SetUp() override {
    if (!cuda_device_count()) GTEST_SKIP() << "no GPU";
    queue_ = *cuda_memory().create_queue();
    staging_ = *cuda_memory().allocate_staging(kBytes);
    for (int i = 0; i < kBuffers; ++i) buffers_.push_back(*cuda_memory().allocate(kBytes));
  }
  std::span<std::byte> host() const { return {staging_.data(), static_cast<size_t>(kBytes)}; }
  Status copy_along() {
    for (int i = 1; i < kBuffers; ++i)
      HEARTH_TRY(queue_->copy_within(buffers_[i].data(), buffers_[i - 1].data(), kBytes));
    return {};
  }
  // Bytes of `value` arrive at the last buffer by way of all others.
  void expect_copies(Recording& recording, int value) {
    std::memset(staging_.data(), value, kBytes);
    ASSERT_TRUE(queue_->copy_in(buffers_[0].data(), host()));
    const Status ran = recording.run();
    ASSERT_TRUE(ran) << ran.error().message;
    ASSERT_TRUE(queue_->synchronize());
    std::memset(staging_.data(), 0, kBytes);
    ASSERT_TRUE(queue_->copy_out(host(), buffers_.back().data()));
    ASSERT_TRUE(queue_->synchronize());
    for (const std::byte byte : host()) ASSERT_EQ(byte, std::byte(value));
  }

  std::unique_ptr<Queue> queue_;
  Buffer staging_;
  std::vector<Buffer> buffers_;
};

TEST_F(CudaRecordings, MemoryGoesWhenOtherThreadsHaveRecorded) {
  Buffer goes = *cuda_memory().allocate(kBytes);
  std::atomic<bool> begun = false, going = false, gone = false;
  std::thread other([&] {
    while (!begun) std::this_thread::yield();
    going = true;
    goes = Buffer();
    gone = true;
  });
  bool gone_within = false;
  const auto recording = queue_->record([&]() -> Status {
    HEARTH_TRY(copy_along());
    begun = true;
    while (!going) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    gone_within = gone;
    return copy_along();
  });
  other.join();
  ASSERT_TRUE(recording) << recording.error().message;
  EXPECT_FALSE(gone_within);
  EXPECT_TRUE(gone);
  expect_copies(**recording, 7);
}

// Whatever another thread makes and frees meanwhile, both go on.
TEST_F(CudaRecordings, OthersAllocateAndFreeBeside) {
  constexpr int kRecordings = 100;
  std::atomic<bool> done = false;
  std::atomic<int> rounds = 0;
  std::vector<std::string> failures;
  std::thread other([&] {
    const auto note = [&](const char* what, const Status& status) {
      if (!status && failures.size() < 10) failures.push_back(fmt::format("{}: {}", what, status.error().message));
    };
    const auto made = [&](const char* what, const auto& result) {
      note(what, result ? Status() : Status(result.error()));
      return result.has_value();
    };
    std::vector<std::byte> bytes(4096, std::byte(3));
    for (; !done; ++rounds) {
      made("allocate", cuda_memory().allocate(kBytes));
      made("allocate_staging", cuda_memory().allocate_staging(kBytes));
      made("create_queue", cuda_memory().create_queue());
      if (auto buffer = DeviceBuffer::allocate(4096); made("DeviceBuffer", buffer)) {
        note("copy_from_host", buffer->copy_from_host(bytes));
        note("copy_to_host", buffer->copy_to_host(bytes));
      }
      if (auto begin = Event::create(), end = Event::create(); made("Event", begin) && made("Event", end)) {
        const auto stream = Stream::create();
        if (!made("Stream", stream)) continue;
        note("record", begin->record(*stream)), note("record", end->record(*stream));
        made("us_since", end->us_since(*begin));
      }
      note("synchronize_cuda_device", synchronize_cuda_device());
    }
  });
  for (int i = 0; i < kRecordings && !HasFatalFailure(); ++i) {
    const auto recording = queue_->record([this]() -> Status {
      for (int times = 0; times < 10; ++times) HEARTH_TRY(copy_along());
      return {};
    });
    EXPECT_TRUE(recording) << "recording " << i << ": " << recording.error().message;
    if (!recording) break;
    expect_copies(**recording, i + 1);
  }
  done = true;
  other.join();
  EXPECT_TRUE(failures.empty()) << ::testing::PrintToString(failures);
  EXPECT_GT(rounds, 1);
  fmt::print("{} recordings beside {} rounds of allocations\n", kRecordings, rounds.load());
}

}  // namespace
}  // namespace hearth
