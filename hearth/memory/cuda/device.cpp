// SPDX-License-Identifier: Apache-2.0
// The owners of device.h over the CUDA runtime.
#include "hearth/memory/cuda/device.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>

#include "hearth/base/check.h"
#include "hearth/base/log.h"
#include "hearth/memory/cuda/cuda_status.h"

namespace hearth {
namespace {

constexpr int64_t kLeastPageBytes = 4096;  // of the host

// For destructors: at process exit the driver may already be gone, which is no news.
void log_failure(cudaError_t error, const char* what) {
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) return;
  spdlog::warn("{}: {}", what, cudaGetErrorString(error));
}

// A destructor runs on whatever thread it likes.
template <class Free, class Handle>
void destroy(Free free, Handle handle, const char* what) {
  if (handle == nullptr) return;
  static_cast<void>(enter_cuda_device());  // where that fails, so does what follows
  log_failure(free(handle), what);
}

std::mutex choice_mutex;
std::optional<int> choice;          // by choose_cuda_device(), or the first that was entered
std::atomic<int> chosen_device{0};  // the same, or 0
thread_local bool has_entered = false;

// Held by everyone who records, and alone by who waits for the whole device.
std::shared_mutex recordings;
thread_local bool is_recording = false;

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }

}  // namespace

Result<int> cuda_device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  const std::string found = error != cudaSuccess
                                ? fmt::format("{} ({})", cudaGetErrorString(error), cudaGetErrorName(error))
                                : std::string("the driver shows none");
  // A missing driver is reported as an old one.
  if (error == cudaErrorInsufficientDriver || error == cudaErrorStubLibrary)
    return unavailable("no NVIDIA driver, or one that is older than CUDA {}: {}", CUDART_VERSION / 1000, found);
  if (error != cudaSuccess || count == 0)
    return unavailable(
        "no GPU that this process may use: {}; nvidia-smi lists the machine's, CUDA_VISIBLE_DEVICES hides some", found);
  return count;
}

Result<CudaDeviceInfo> cuda_device_info(int device) {
  cudaDeviceProp properties{};
  HEARTH_CUDA_TRY(cudaGetDeviceProperties(&properties, device));
  return CudaDeviceInfo{.name = properties.name,
                        .multiprocessors = properties.multiProcessorCount,
                        .l2_bytes = properties.l2CacheSize,
                        .block_shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin),
                        .compute_capability = properties.major * 10 + properties.minor};
}

Result<const CudaDeviceInfo*> current_cuda_device() {
  static std::mutex mutex;
  static std::map<int, CudaDeviceInfo> known;
  HEARTH_TRY(enter_cuda_device());
  const int device = cuda_device();
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(device); found != known.end()) return &found->second;
  HEARTH_TRY_ASSIGN(CudaDeviceInfo info, cuda_device_info(device));
  return &known.emplace(device, std::move(info)).first->second;
}

int cuda_device() { return chosen_device.load(std::memory_order_relaxed); }

Status choose_cuda_device(int device) {
  HEARTH_TRY_ASSIGN(const int count, cuda_device_count());
  if (device < 0 || device >= count)
    return invalid_argument("GPU {}: this process sees {}, numbered from 0", device, count);
  const std::lock_guard lock(choice_mutex);
  if (choice && *choice != device)
    return invalid_argument("GPU {} beside GPU {}: all models of a process are on one GPU; start another process",
                            device, *choice);
  choice = device;
  chosen_device.store(device, std::memory_order_relaxed);
  return {};
}

Status enter_cuda_device() {
  if (has_entered) [[likely]]
    return {};
  const std::lock_guard lock(choice_mutex);  // a choice that is made now waits, and is refused
  const int device = cuda_device();
  HEARTH_CUDA_TRY(cudaSetDevice(device));
  choice = device;
  has_entered = true;
  return {};
}

Status synchronize_cuda_device() {
  HEARTH_CHECK(!is_recording, "memory of the GPU goes, or something waits for it, within a recording");
  const std::unique_lock lock(recordings);
  HEARTH_TRY(enter_cuda_device());
  // At process exit the driver may already be gone, and with it all work.
  const cudaError_t error = cudaDeviceSynchronize();
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) return {};
  return cuda_error(error, "cudaDeviceSynchronize");
}

Status check_cuda_device() {
  HEARTH_TRY(cuda_device_count());
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo info, cuda_device_info(cuda_device()));
  if (info.compute_capability != 90)
    return unsupported("GPU {}, {}, has compute capability {}.{}; hearth's kernels are for 9.0 (H100, H200)",
                       cuda_device(), info.name, info.compute_capability / 10, info.compute_capability % 10);
  return {};
}

Result<Stream> Stream::create() {
  HEARTH_TRY(enter_cuda_device());
  cudaStream_t stream = nullptr;
  HEARTH_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

Stream::~Stream() { destroy(cudaStreamDestroy, stream_of(handle_), "cudaStreamDestroy"); }

Status Stream::synchronize() const {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaStreamSynchronize(stream_of(handle_)));
  return {};
}

Result<DeviceBuffer> DeviceBuffer::allocate(int64_t size_bytes) {
  if (size_bytes < 0) return invalid_argument("device buffer of {} bytes, wanted at least 0", size_bytes);
  if (size_bytes == 0) return DeviceBuffer();
  HEARTH_TRY(enter_cuda_device());
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(size_bytes)); error != cudaSuccess)
    return cuda_error(error, "cudaMalloc").with_context(fmt::format("device buffer of {} bytes", size_bytes));
  return DeviceBuffer(static_cast<std::byte*>(data), size_bytes);
}

DeviceBuffer::~DeviceBuffer() { destroy(cudaFree, static_cast<void*>(data_), "cudaFree"); }

Status DeviceBuffer::copy_from_host(std::span<const std::byte> from) {
  HEARTH_CHECK(static_cast<int64_t>(from.size()) <= size_bytes_, "{} bytes into a buffer of {}", from.size(),
               size_bytes_);
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaMemcpy(data_, from.data(), from.size(), cudaMemcpyHostToDevice));
  // From pageable memory the call returns before the last bytes have arrived, and our streams wait for no other.
  HEARTH_CUDA_TRY(cudaStreamSynchronize(nullptr));
  return {};
}

Status DeviceBuffer::copy_to_host(std::span<std::byte> to) const {
  HEARTH_CHECK(static_cast<int64_t>(to.size()) <= size_bytes_, "{} bytes from a buffer of {}", to.size(), size_bytes_);
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaMemcpy(to.data(), data_, to.size(), cudaMemcpyDeviceToHost));
  return {};
}

Result<PinnedBuffer> PinnedBuffer::allocate(int64_t size_bytes) {
  if (size_bytes < 0) return invalid_argument("pinned buffer of {} bytes, wanted at least 0", size_bytes);
  if (size_bytes == 0) return PinnedBuffer();
  HEARTH_TRY(enter_cuda_device());
  const auto failed = [&](cudaError_t error, const char* what) {
    return cuda_error(error, what).with_context(fmt::format("pinned buffer of {} bytes", size_bytes));
  };
  if (size_bytes < kRegisteredBytes) {
    void* data = nullptr;
    if (const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(size_bytes)); error != cudaSuccess)
      return failed(error, "cudaMallocHost");
    return PinnedBuffer(static_cast<std::byte*>(data), size_bytes);
  }
  // Whole huge pages, so that no page is pinned for two buffers.
  HEARTH_TRY_ASSIGN(HostBuffer memory, HostBuffer::allocate(size_bytes));
  for (int64_t at = 0; at < size_bytes; at += kLeastPageBytes) static_cast<volatile std::byte*>(memory.data())[at] = {};
  if (const cudaError_t error =
          cudaHostRegister(memory.data(), static_cast<size_t>(size_bytes), cudaHostRegisterDefault);
      error != cudaSuccess)
    return failed(error, "cudaHostRegister");
  PinnedBuffer buffer(memory.data(), size_bytes);
  buffer.registered_ = std::move(memory);
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (registered_.size_bytes() > 0) {
    destroy(cudaHostUnregister, static_cast<void*>(data_), "cudaHostUnregister");
  } else {
    destroy(cudaFreeHost, static_cast<void*>(data_), "cudaFreeHost");
  }
}

Result<Event> Event::create() {
  HEARTH_TRY(enter_cuda_device());
  cudaEvent_t event = nullptr;
  HEARTH_CUDA_TRY(cudaEventCreate(&event));
  return Event(event);
}

Event::~Event() { destroy(cudaEventDestroy, event_of(handle_), "cudaEventDestroy"); }

Status Event::record(const Stream& stream) {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaEventRecord(event_of(handle_), stream_of(stream.handle())));
  return {};
}

Result<bool> Event::reached() const {
  HEARTH_TRY(enter_cuda_device());
  const cudaError_t error = cudaEventQuery(event_of(handle_));
  if (error == cudaErrorNotReady) return false;
  HEARTH_CUDA_TRY(error);
  return true;
}

Status Event::synchronize() const {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaEventSynchronize(event_of(handle_)));
  return {};
}

Result<double> Event::us_since(const Event& start) const {
  float milliseconds = 0;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaEventSynchronize(event_of(handle_)));
  HEARTH_CUDA_TRY(cudaEventElapsedTime(&milliseconds, event_of(start.handle_), event_of(handle_)));
  return 1e3 * milliseconds;
}

namespace {

// What `body` puts into the stream; the caller's.
Result<cudaGraph_t> record(cudaStream_t stream, FunctionRef<Status()> body) {
  HEARTH_CHECK(!is_recording, "a recording within a recording");
  const std::shared_lock lock(recordings);
  // Other threads may free and allocate what does not wait for the whole device; this one may not.
  HEARTH_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  is_recording = true;
  const Status status = body();
  is_recording = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (status && ended == cudaSuccess) return graph;
  if (graph != nullptr) log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  HEARTH_TRY(status);
  return cuda_error(ended, "cudaStreamEndCapture");
}

}  // namespace

Result<Graph> Graph::capture(const Stream& stream, FunctionRef<Status()> body) {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_TRY_ASSIGN(const cudaGraph_t graph, record(stream_of(stream.handle()), body));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  HEARTH_CUDA_TRY(made);
  return Graph(executable);
}

Graph::~Graph() { destroy(cudaGraphExecDestroy, static_cast<cudaGraphExec_t>(executable_), "cudaGraphExecDestroy"); }

Status Graph::launch(const Stream& stream) const {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream_of(stream.handle())));
  return {};
}

}  // namespace hearth
