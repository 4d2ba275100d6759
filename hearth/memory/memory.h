// SPDX-License-Identifier: Apache-2.0
// Where a model lies and its steps run, as the model sees it: host memory, or that of a GPU. A backend's op table
// names one; whoever holds weights, a KV pool or activations allocates there and never asks which it is.
//   I1. A Buffer frees itself, keeps its address while it is moved, and outlives neither its process nor its device.
//   I2. Work of a queue runs in the order in which it was put in; queues know nothing of each other.
// Memory is stateless and for any thread; a queue and a buffer are used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"

namespace hearth {

// An owned piece of memory. Only host memory may be touched by the CPU.
class Buffer {
 public:
  Buffer() = default;
  // Of an owner with data() and size_bytes(), such as HostBuffer, and resize() where it can.
  template <class Owner>
  explicit Buffer(Owner owner) {
    auto kept = std::make_shared<Owner>(std::move(owner));
    data_ = kept->data();
    size_bytes_ = kept->size_bytes();
    if constexpr (requires { kept->resize(int64_t{}); })
      resize_ = [](void* of, int64_t bytes) { return static_cast<Owner*>(of)->resize(bytes); };
    owner_ = std::move(kept);
  }
  Buffer(Buffer&& other) noexcept
      : owner_(std::move(other.owner_)),
        data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)),
        resize_(std::exchange(other.resize_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(resize_, other.resize_);
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

  // The buffer has its first `size_bytes` bytes from now on: what lies behind goes back to where it came from, what
  // is new is uninitialised, the rest and the address stay. Unsupported but for Memory::allocate_resizable();
  // InvalidArgument beyond its limit; ResourceExhausted where it does not fit, and nothing has changed.
  // REQUIRES: no work under way uses what comes or goes.
  Status resize(int64_t size_bytes);

 private:
  std::shared_ptr<void> owner_;
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  Status (*resize_)(void* owner, int64_t size_bytes) = nullptr;
};

// resize() in steps of kResizeStepBytes with pauses between, for memory of a device on which others work: its driver
// keeps whoever starts work there waiting while pages come or go. Errors as resize(); then the buffer is as it was.
inline constexpr int64_t kResizeStepBytes = int64_t{256} << 20;
Status resize_in_steps(Buffer& buffer, int64_t size_bytes);

// Who waits for a device's driver gets it: a lock is had again at once by the thread that just gave it up.
void let_others_start_work();

// Work that a queue keeps, to be put in again as one: the same launches with the same arguments, over what the memory
// that they name then holds. Belongs to the queue that made it, and goes before it.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual Status run() = 0;
};

// A place in a queue's order.
class QueueMark {
 public:
  virtual ~QueueMark() = default;
  // Behind all that is in the queue now.
  virtual Status set() = 0;
  // Whether the queue has come there; waits for that. Both return what went wrong before.
  virtual Result<bool> reached() = 0;
  virtual Status wait() = 0;
};

// Work in order.
class Queue {
 public:
  virtual ~Queue() = default;
  // What an ExecContext takes: a cudaStream_t, or null on the host.
  virtual void* stream() const = 0;
  // Copies between the host and this memory, in order with the rest; they may still run when the call returns, so
  // the host's side stays until synchronize(). At full speed where it came from allocate_staging().
  virtual Status copy_in(std::byte* to, std::span<const std::byte> from) = 0;
  virtual Status copy_out(std::span<std::byte> to, const std::byte* from) = 0;
  // Within this memory; the two do not overlap.
  virtual Status copy_within(std::byte* to, const std::byte* from, int64_t size_bytes) = 0;
  // Waits for all of it, and returns what went wrong.
  virtual Status synchronize() = 0;
  // A mark of this queue, which goes before it. This one, for queues that do their work at once, is always reached.
  virtual Result<std::unique_ptr<QueueMark>> create_mark();
  // Keeps the work that `body` puts into this queue instead of doing it. Unsupported where the queue cannot.
  virtual Result<std::unique_ptr<Recording>> record(std::function<Status()> body) = 0;
  // Puts what `body` puts in `count` times, one behind the other, waits for all of it, and returns the microseconds
  // that each took: by the device's own clock, the host's part left out where it runs ahead of the device. This one,
  // for queues whose device has no clock, takes them by `clock` and waits for each.
  virtual Result<std::vector<double>> time_each(int64_t count, const std::function<Status()>& body, const Clock& clock);
};

class Memory {
 public:
  virtual ~Memory() = default;
  virtual std::string_view name() const = 0;
  // The GPU whose memory this is, as results name it; empty on the host.
  virtual std::string device_name() const = 0;
  // Bytes that allocate() could still give, all together.
  virtual Result<int64_t> available_bytes() const = 0;
  // Of the largest cache between this memory and what computes; 0: unknown.
  virtual int64_t cache_bytes() const { return 0; }
  // Whether the CPU may touch what allocate() returns.
  virtual bool is_host() const = 0;
  // Uninitialised bytes, aligned to 64 at least. ResourceExhausted where they do not fit, Unavailable where the
  // machine has no such memory.
  virtual Result<Buffer> allocate(int64_t size_bytes) const = 0;
  // The same, with addresses for `limit_bytes` so that it can be resized up to there. Aligned to 4096.
  virtual Result<Buffer> allocate_resizable(int64_t size_bytes, int64_t limit_bytes) const = 0;
  // Host memory from which and to which a queue copies at full speed.
  virtual Result<Buffer> allocate_staging(int64_t size_bytes) const = 0;
  virtual Result<std::unique_ptr<Queue>> create_queue() const = 0;
};

const Memory& host_memory();

}  // namespace hearth
