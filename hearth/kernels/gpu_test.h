// SPDX-License-Identifier: Apache-2.0
// Test support for ops on a GPU: device copies of host tensors, pools and steps. Tests only; one thread. Without a
// device every use fails the test.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "hearth/kernels/exec.h"
#include "hearth/kernels/op_test.h"
#include "hearth/kernels/step_test.h"
#include "hearth/memory/cuda/cuda_memory.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/step_staging.h"

namespace hearth {

// Of the device that the tests run on.
inline int multiprocessors() {
  const auto device = current_cuda_device();
  EXPECT_TRUE(device) << device.error().message;
  return device ? (*device)->multiprocessors : 1;
}

// A copy of host bytes in device memory.
class DeviceCopy {
 public:
  explicit DeviceCopy(std::span<std::byte> host) : host_(host) {
    auto buffer = DeviceBuffer::allocate(static_cast<int64_t>(host.size()));
    EXPECT_TRUE(buffer) << buffer.error().message;
    if (!buffer) return;
    buffer_ = *std::move(buffer);
    EXPECT_TRUE(buffer_.copy_from_host(host));
  }
  std::byte* data() const { return buffer_.data(); }
  void copy_back() { EXPECT_TRUE(buffer_.copy_to_host(host_)); }

 private:
  std::span<std::byte> host_;
  DeviceBuffer buffer_;
};

// Of a tensor, guard zones included: what a kernel writes outside of it comes back with the guards and fails the host
// tensor's check.
class OnDevice {
 public:
  explicit OnDevice(TestTensor& host) : host_(host), copy_(host.all_bytes()) {}
  TensorView view() const { return moved(host_.view()); }
  TensorView vector() const { return moved(host_.vector()); }
  void copy_back() { copy_.copy_back(); }

 private:
  TensorView moved(TensorView view) const {
    view.data = copy_.data() + (static_cast<std::byte*>(view.data) - host_.all_bytes().data());
    return view;
  }
  TestTensor& host_;
  DeviceCopy copy_;
};

// A stream, scratch, and the arrays of a step on the device.
class GpuExec {
 public:
  explicit GpuExec(const StepBatch& step = {}, int64_t workspace_bytes = 0) {
    auto queue = cuda_memory().create_queue();
    EXPECT_TRUE(queue) << queue.error().message;
    queue_ = *std::move(queue);
    auto staging = StepStaging::create(cuda_memory(), {.tokens = step.num_tokens(),
                                                       .sequences = step.num_sequences(),
                                                       .logit_rows = static_cast<int64_t>(step.logit_rows.size()),
                                                       .block_entries = static_cast<int64_t>(step.block_table.size())});
    EXPECT_TRUE(staging) << staging.error().message;
    staging_ = *std::move(staging);
    auto staged = staging_.stage(step, *queue_);
    EXPECT_TRUE(staged) << staged.error().message;
    batch_ = *staged;
    workspace_ = *DeviceBuffer::allocate(workspace_bytes);
    exec_ = {.stream = queue_->stream(),
             .workspace = {workspace_.data(), static_cast<size_t>(workspace_bytes)},
             .staged = staging_.memory()};
  }
  ExecContext& exec() { return exec_; }
  const StepBatch& batch() const { return batch_; }
  Status synchronize() { return queue_->synchronize(); }

 private:
  std::unique_ptr<Queue> queue_;
  StepStaging staging_;
  StepBatch batch_;
  DeviceBuffer workspace_;
  ExecContext exec_;
};

}  // namespace hearth
