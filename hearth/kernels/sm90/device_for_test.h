// SPDX-License-Identifier: Apache-2.0
// Test support: a stream, and vectors that go to the device and come back. Tests only; one thread. Without a device
// every use fails the test.
#pragma once

#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "hearth/memory/cuda/device.h"

namespace hearth::sm90 {

struct Device {
  Device() {
    auto created = Stream::create();
    EXPECT_TRUE(created) << created.error().message;
    if (created) stream = *std::move(created);
  }
  Stream stream;

  template <class T>
  DeviceBuffer put(const std::vector<T>& from) {
    auto buffer = DeviceBuffer::allocate(static_cast<int64_t>(from.size() * sizeof(T)));
    EXPECT_TRUE(buffer) << buffer.error().message;
    EXPECT_TRUE(buffer->copy_from_host(std::as_bytes(std::span(from))));
    return *std::move(buffer);
  }
  // Waits, and copies back.
  template <class T>
  std::vector<T> get(const DeviceBuffer& buffer) {
    const Status status = stream.synchronize();
    EXPECT_TRUE(status) << status.error().message;
    std::vector<T> to(static_cast<size_t>(buffer.size_bytes()) / sizeof(T));
    EXPECT_TRUE(buffer.copy_to_host(std::as_writable_bytes(std::span(to))));
    return to;
  }
};

}  // namespace hearth::sm90
