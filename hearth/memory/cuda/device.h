// SPDX-License-Identifier: Apache-2.0
// The owners of what lives on a GPU: memory, streams, events and graphs of the current device. Move-only;
// a moved-from or default one is empty. Destructors log and never fail. Handles are void* so that no CUDA
// header is needed. An object is used by one thread at a time, which is made to use its GPU: no thread is left on
// another, where the runtime would make a context of some hundred MB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"
#include "hearth/memory/host_buffer.h"

namespace hearth {

// GPUs that this process can use. Unavailable where there is no driver or no device, never 0.
Result<int> cuda_device_count();

struct CudaDeviceInfo {
  std::string name;
  int multiprocessors = 0;
  int64_t l2_bytes = 0;
  int64_t block_shared_bytes = 0;  // most of a block that asks for it
  int compute_capability = 0;      // 90 for sm_90
};
Result<CudaDeviceInfo> cuda_device_info(int device);
// That of cuda_device(), asked for once: what grids and splits are planned by.
Result<const CudaDeviceInfo*> current_cuda_device();
// The GPU of this process: all of its models, memory and streams are on one. 0 unless chosen.
int cuda_device();
// Chooses it, before it is used. InvalidArgument: there is no such GPU, or another has been chosen or used before;
// Unavailable as above.
Status choose_cuda_device(int device);
// Makes it this thread's current device; the functions here, launch() and queues do so by themselves.
Status enter_cuda_device();
// Waits for all work of the GPU, and for recordings that other threads make: while a stream is recorded, the driver
// refuses to wait for its device, and gives the recording up. REQUIRES: this thread is making none.
Status synchronize_cuda_device();
// Whether the chosen GPU can run hearth's kernels, and what is missing where it cannot. Unavailable: a driver or a
// device; Unsupported: it is of another generation than Hopper.
Status check_cuda_device();

class Stream {
 public:
  Stream() = default;
  ~Stream();
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  static Result<Stream> create();

  void* handle() const { return handle_; }  // a cudaStream_t, for ExecContext
  // Waits until all work of the stream is done; returns what went wrong in it.
  Status synchronize() const;

 private:
  explicit Stream(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;
};

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  // Uninitialised, 256-byte aligned; 0 bytes are legal. ResourceExhausted where the device is full.
  static Result<DeviceBuffer> allocate(int64_t size_bytes);

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  // Both wait for the copy. REQUIRES: the span lies within the buffer, from its start.
  Status copy_from_host(std::span<const std::byte> from);
  Status copy_to_host(std::span<std::byte> to) const;

 private:
  DeviceBuffer(std::byte* data, int64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// Host memory that the GPU copies from and to at full speed, beside running kernels.
// From kRegisteredBytes on it is ordinary memory that is in use already when it is pinned: cudaMallocHost() brings it
// into use with the driver's lock held, 0.3 s for each GB, and keeps whoever starts work meanwhile waiting.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : registered_(std::move(other.registered_)),
        data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(registered_, other.registered_);
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  static constexpr int64_t kRegisteredBytes = HostBuffer::kHugePageBytes;
  // Uninitialised, page-aligned; 0 bytes are legal. ResourceExhausted where the machine cannot pin so much.
  static Result<PinnedBuffer> allocate(int64_t size_bytes);

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  PinnedBuffer(std::byte* data, int64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  HostBuffer registered_;  // where it is not the driver's
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// A point in a stream, with a time.
class Event {
 public:
  Event() = default;
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept { return std::swap(handle_, other.handle_), *this; }
  static Result<Event> create();

  Status record(const Stream& stream);
  // Of what was recorded last.
  Result<bool> reached() const;
  Status synchronize() const;
  // Microseconds from `start` to this one; both recorded. Waits for this one.
  Result<double> us_since(const Event& start) const;

 private:
  explicit Event(void* handle) : handle_(handle) {}
  void* handle_ = nullptr;
};

// A captured sequence of launches that is started as one.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept { return std::swap(executable_, other.executable_), *this; }
  // Records what `body` puts into the stream, without running it. `body` frees no memory of the GPU.
  static Result<Graph> capture(const Stream& stream, FunctionRef<Status()> body);

  Status launch(const Stream& stream) const;
  explicit operator bool() const { return executable_ != nullptr; }

 private:
  explicit Graph(void* executable) : executable_(executable) {}
  void* executable_ = nullptr;
};

}  // namespace hearth
