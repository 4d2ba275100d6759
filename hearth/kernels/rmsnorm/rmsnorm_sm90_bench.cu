// SPDX-License-Identifier: Apache-2.0
// The GPU side of rmsnorm_bench: a CUDA graph of 100 calls, each on other tensors, started 30 times and
// timed by events; and another of device-to-device copies of as many bytes.
#include "hearth/kernels/rmsnorm/rmsnorm_bench.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int64_t kCalls = 100;
constexpr int kRuns = 33, kWarmUps = 3;
constexpr int64_t kMemoryBytes = int64_t{400} << 20;  // 8 times the 50 MB of an H100's L2

// CHECK is enough for a benchmark: there is nobody to hand an error to.
template <class T>
T expect(Result<T> result) {
  HEARTH_CHECK(result, "{}", result.error().message);
  return std::move(result).value();
}
void expect(const Status& status) { HEARTH_CHECK(status, "{}", status.error().message); }

class Sm90Bench : public RmsNormBench {
 public:
  Sm90Bench() : stream_(expect(Stream::create())), begin_(expect(Event::create())), end_(expect(Event::create())) {}

  RmsNormTimes time(const RmsNormProblem& p) override {
    const int64_t tensor_bytes = p.tensor_bytes();
    const int64_t sets = std::min<int64_t>(kCalls, std::max<int64_t>(2, kMemoryBytes / (3 * tensor_bytes)));
    const DeviceBuffer memory = expect(DeviceBuffer::allocate(sets * 3 * tensor_bytes));
    const DeviceBuffer weight = expect(DeviceBuffer::allocate(p.hidden * 4));
    expect(clear(memory));
    expect(clear(weight));
    ExecContext exec{.stream = stream_.handle()};
    const auto tensor = [&](int64_t call, int64_t which) {
      return memory.data() + (3 * (call % sets) + which) * tensor_bytes;
    };
    const Graph op = expect(Graph::capture(stream_, [&]() -> Status {
      for (int64_t i = 0; i < kCalls; ++i)
        HEARTH_TRY(rmsnorm_sm90(p.args(tensor(i, 0), tensor(i, 1), tensor(i, 2), weight.data()), exec));
      return {};
    }));
    const Graph copy = expect(Graph::capture(stream_, [&]() -> Status {
      for (int64_t i = 0; i < kCalls; ++i) {
        HEARTH_TRY(copy_tensor(tensor(i, 2), tensor(i, 0), tensor_bytes));
        if (p.residual) HEARTH_TRY(copy_tensor(tensor(i, 1), tensor(i + 1, 0), tensor_bytes));
      }
      return {};
    }));
    RmsNormTimes times;
    for (int run = 0; run < kRuns; ++run) {
      const double op_us = expect(time_graph(op)), copy_us = expect(time_graph(copy));
      if (run < kWarmUps) continue;
      times.op.add(op_us / kCalls);
      times.copy.add(copy_us / kCalls);
    }
    return times;
  }

 private:
  Status clear(const DeviceBuffer& buffer) {
    HEARTH_CUDA_TRY(cudaMemset(buffer.data(), 0, static_cast<size_t>(buffer.size_bytes())));
    return {};
  }
  Status copy_tensor(std::byte* to, const std::byte* from, int64_t bytes) {
    HEARTH_CUDA_TRY(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                                    static_cast<cudaStream_t>(stream_.handle())));
    return {};
  }
  Result<double> time_graph(const Graph& graph) {
    HEARTH_TRY(begin_.record(stream_));
    HEARTH_TRY(graph.launch(stream_));
    HEARTH_TRY(end_.record(stream_));
    return end_.us_since(begin_);
  }

  Stream stream_;
  Event begin_, end_;
};

}  // namespace

Result<std::unique_ptr<RmsNormBench>> make_rmsnorm_sm90_bench(std::string& device) {
  HEARTH_TRY(cuda_device_count());
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo info, cuda_device_info(0));
  device = info.name;
  return std::unique_ptr<RmsNormBench>(new Sm90Bench());
}

}  // namespace hearth
