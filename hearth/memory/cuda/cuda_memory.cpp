// SPDX-License-Identifier: Apache-2.0
#include "hearth/memory/cuda/cuda_memory.h"

#include <cuda_runtime_api.h>

#include "hearth/memory/cuda/cuda_arena.h"
#include "hearth/memory/cuda/cuda_status.h"
#include "hearth/memory/cuda/device.h"

namespace hearth {
namespace {

class CudaRecording final : public Recording {
 public:
  CudaRecording(Graph graph, const Stream& stream) : graph_(std::move(graph)), stream_(stream) {}
  Status run() override { return graph_.launch(stream_); }

 private:
  Graph graph_;
  const Stream& stream_;
};

class CudaMark final : public QueueMark {
 public:
  CudaMark(Event event, const Stream& stream) : event_(std::move(event)), stream_(stream) {}
  Status set() override { return event_.record(stream_); }
  Result<bool> reached() override { return event_.reached(); }
  Status wait() override { return event_.synchronize(); }

 private:
  Event event_;
  const Stream& stream_;
};

class CudaQueue final : public Queue {
 public:
  explicit CudaQueue(Stream stream) : stream_(std::move(stream)) {}
  void* stream() const override { return stream_.handle(); }
  Status copy_in(std::byte* to, std::span<const std::byte> from) override {
    HEARTH_TRY(enter_cuda_device());
    HEARTH_CUDA_TRY(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, handle()));
    return {};
  }
  Status copy_out(std::span<std::byte> to, const std::byte* from) override {
    HEARTH_TRY(enter_cuda_device());
    HEARTH_CUDA_TRY(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, handle()));
    return {};
  }
  Status copy_within(std::byte* to, const std::byte* from, int64_t size_bytes) override {
    HEARTH_TRY(enter_cuda_device());
    HEARTH_CUDA_TRY(cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes), cudaMemcpyDeviceToDevice, handle()));
    return {};
  }
  Status synchronize() override { return stream_.synchronize(); }
  Result<std::unique_ptr<QueueMark>> create_mark() override {
    HEARTH_TRY_ASSIGN(Event event, Event::create());
    return std::unique_ptr<QueueMark>(std::make_unique<CudaMark>(std::move(event), stream_));
  }
  Result<std::unique_ptr<Recording>> record(std::function<Status()> body) override {
    HEARTH_TRY_ASSIGN(Graph graph, Graph::capture(stream_, body));
    return std::unique_ptr<Recording>(std::make_unique<CudaRecording>(std::move(graph), stream_));
  }
  Result<std::vector<double>> time_each(int64_t count, const std::function<Status()>& body, const Clock&) override {
    std::vector<Event> marks;
    for (int64_t i = 0; i <= count; ++i) {
      HEARTH_TRY_ASSIGN(Event mark, Event::create());
      marks.push_back(std::move(mark));
    }
    HEARTH_TRY(marks.front().record(stream_));
    for (size_t i = 1; i < marks.size(); ++i) {
      HEARTH_TRY(body());
      HEARTH_TRY(marks[i].record(stream_));
    }
    HEARTH_TRY(synchronize());
    std::vector<double> times_us;
    for (size_t i = 1; i < marks.size(); ++i) {
      HEARTH_TRY_ASSIGN(const double us, marks[i].us_since(marks[i - 1]));
      times_us.push_back(us);
    }
    return times_us;
  }

 private:
  cudaStream_t handle() const { return static_cast<cudaStream_t>(stream_.handle()); }
  Stream stream_;
};

class CudaMemory final : public Memory {
 public:
  std::string_view name() const override { return "cuda"; }
  std::string device_name() const override {
    const auto info = cuda_device_info(cuda_device());
    return info ? info->name : "GPU";
  }
  Result<int64_t> available_bytes() const override {
    HEARTH_TRY(enter_cuda_device());
    size_t free_bytes = 0, total_bytes = 0;
    HEARTH_CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<int64_t>(free_bytes);
  }
  int64_t cache_bytes() const override {
    const auto info = cuda_device_info(cuda_device());
    return info ? info->l2_bytes : 0;
  }
  bool is_host() const override { return false; }
  Result<Buffer> allocate(int64_t size_bytes) const override {
    HEARTH_TRY_ASSIGN(PageArena::Block block, cuda_arena().allocate(size_bytes));
    return Buffer(std::move(block));
  }
  Result<Buffer> allocate_resizable(int64_t size_bytes, int64_t limit_bytes) const override {
    HEARTH_TRY_ASSIGN(PageArena::Block block, cuda_arena().allocate(size_bytes, limit_bytes));
    return Buffer(std::move(block));
  }
  Result<Buffer> allocate_staging(int64_t size_bytes) const override {
    HEARTH_TRY_ASSIGN(PinnedBuffer buffer, PinnedBuffer::allocate(size_bytes));
    return Buffer(std::move(buffer));
  }
  Result<std::unique_ptr<Queue>> create_queue() const override {
    HEARTH_TRY_ASSIGN(Stream stream, Stream::create());
    return std::unique_ptr<Queue>(std::make_unique<CudaQueue>(std::move(stream)));
  }
};

}  // namespace

const Memory& cuda_memory() {
  static const CudaMemory memory;
  return memory;
}

}  // namespace hearth
