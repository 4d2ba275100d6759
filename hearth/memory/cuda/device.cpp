// SPDX-License-Identifier: Apache-2.0
// The owners of device.h over the CUDA runtime.
#include "hearth/memory/cuda/device.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <mutex>
#include <optional>

#include "hearth/base/log.h"
#include "hearth/memory/cuda/cuda_status.h"

namespace hearth {
namespace {

// For destructors: at process exit the driver may already be gone, which is no news.
void log_failure(cudaError_t error, const char* what) {
  if (error == cudaSuccess || error == cudaErrorCudartUnloading) return;
  spdlog::warn("{}: {}", what, cudaGetErrorString(error));
}

std::mutex choice_mutex;
std::optional<int> choice;             // by choose_cuda_device()
std::atomic<int> chosen_device{0};     // the same, or 0
thread_local int entered_device = -1;  // of this thread

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
  const int device = cuda_device();
  if (entered_device == device) [[likely]]
    return {};
  HEARTH_CUDA_TRY(cudaSetDevice(device));
  const std::lock_guard lock(choice_mutex);
  if (!choice) choice = device;
  entered_device = device;
  return {};
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

Stream::~Stream() {
  if (handle_ != nullptr) log_failure(cudaStreamDestroy(stream_of(handle_)), "cudaStreamDestroy");
}

Status Stream::synchronize() const {
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

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) log_failure(cudaFree(data_), "cudaFree");
}

Status DeviceBuffer::copy_from_host(std::span<const std::byte> from) {
  HEARTH_CHECK(static_cast<int64_t>(from.size()) <= size_bytes_, "{} bytes into a buffer of {}", from.size(),
               size_bytes_);
  HEARTH_CUDA_TRY(cudaMemcpy(data_, from.data(), from.size(), cudaMemcpyHostToDevice));
  // From pageable memory the call returns before the last bytes have arrived, and our streams wait for no other.
  HEARTH_CUDA_TRY(cudaStreamSynchronize(nullptr));
  return {};
}

Status DeviceBuffer::copy_to_host(std::span<std::byte> to) const {
  HEARTH_CHECK(static_cast<int64_t>(to.size()) <= size_bytes_, "{} bytes from a buffer of {}", to.size(), size_bytes_);
  HEARTH_CUDA_TRY(cudaMemcpy(to.data(), data_, to.size(), cudaMemcpyDeviceToHost));
  return {};
}

Result<PinnedBuffer> PinnedBuffer::allocate(int64_t size_bytes) {
  if (size_bytes < 0) return invalid_argument("pinned buffer of {} bytes, wanted at least 0", size_bytes);
  if (size_bytes == 0) return PinnedBuffer();
  HEARTH_TRY(enter_cuda_device());
  void* data = nullptr;
  if (const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(size_bytes)); error != cudaSuccess)
    return cuda_error(error, "cudaMallocHost").with_context(fmt::format("pinned buffer of {} bytes", size_bytes));
  return PinnedBuffer(static_cast<std::byte*>(data), size_bytes);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) log_failure(cudaFreeHost(data_), "cudaFreeHost");
}

Result<Event> Event::create() {
  HEARTH_TRY(enter_cuda_device());
  cudaEvent_t event = nullptr;
  HEARTH_CUDA_TRY(cudaEventCreate(&event));
  return Event(event);
}

Event::~Event() {
  if (handle_ != nullptr) log_failure(cudaEventDestroy(event_of(handle_)), "cudaEventDestroy");
}

Status Event::record(const Stream& stream) {
  HEARTH_CUDA_TRY(cudaEventRecord(event_of(handle_), stream_of(stream.handle())));
  return {};
}

Result<double> Event::us_since(const Event& start) const {
  float milliseconds = 0;
  HEARTH_CUDA_TRY(cudaEventSynchronize(event_of(handle_)));
  HEARTH_CUDA_TRY(cudaEventElapsedTime(&milliseconds, event_of(start.handle_), event_of(handle_)));
  return 1e3 * milliseconds;
}

Result<Graph> Graph::capture(const Stream& stream, FunctionRef<Status()> body) {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaStreamBeginCapture(stream_of(stream.handle()), cudaStreamCaptureModeThreadLocal));
  const Status status = body();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream_of(stream.handle()), &graph);
  if (!status || ended != cudaSuccess) {
    if (graph != nullptr) log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
    HEARTH_TRY(status);
    return cuda_error(ended, "cudaStreamEndCapture");
  }
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
  HEARTH_CUDA_TRY(made);
  return Graph(executable);
}

Graph::~Graph() {
  if (executable_ != nullptr)
    log_failure(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_)), "cudaGraphExecDestroy");
}

Status Graph::launch(const Stream& stream) const {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream_of(stream.handle())));
  return {};
}

}  // namespace hearth
