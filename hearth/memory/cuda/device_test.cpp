// SPDX-License-Identifier: Apache-2.0
// What holds on every machine, with a GPU or without; the rest is tested with the ops, on a GPU.
#include "hearth/memory/cuda/device.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace hearth
