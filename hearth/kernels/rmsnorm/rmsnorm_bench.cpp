// SPDX-License-Identifier: Apache-2.0
// Times rmsnorm on the CPU or, in a build with CUDA, on the GPU: the wrapper that models call, with a
// residual (4 row transfers) and without (2). The floor is a copy of as many bytes on the same machine in
// the same run. Inputs rotate through more memory than the last cache holds.
//   rmsnorm_bench [--backend cpu|sm90] [--threads N] [--out FILE] [--quick]
//     --out: jsonl lines are appended; --quick: one small shape, for profilers and sanitizers
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/rmsnorm/rmsnorm.h"
#include "hearth/kernels/rmsnorm/rmsnorm_bench.h"
#include "hearth/memory/host_buffer.h"

namespace hearth {
namespace {

struct Width {
  std::string_view config;
  int64_t hidden;
};

constexpr Width kWidths[] = {
    {"fable-13m", 384}, {"Llama-3-1B", 2048}, {"Llama-3-8B", 4096}, {"Llama-3-70B", 8192}, {"16k", 16384}};
constexpr int64_t kRows[] = {1, 8, 64, 512, 4096};

// Samples of the CPU op, and of memcpy of the bytes that it moves, both shared among the same threads.
class CpuBench : public RmsNormBench {
 public:
  explicit CpuBench(ThreadPool& pool) : pool_(pool) {}

  RmsNormTimes time(const RmsNormProblem& p) override {
    const int64_t tensor_bytes = p.tensor_bytes(), sets = p.sets(int64_t{256} << 20);
    HostBuffer memory = *HostBuffer::allocate(sets * 3 * tensor_bytes);
    HostBuffer weight = *HostBuffer::allocate(p.hidden * 4);
    std::memset(memory.data(), 0, static_cast<size_t>(memory.size_bytes()));
    std::memset(weight.data(), 0, static_cast<size_t>(weight.size_bytes()));
    ExecContext exec{.pool = &pool_};
    RmsNormTimes times;
    for (int64_t i = 0; i < 60; ++i) {
      const auto tensor = [&](int64_t which) { return memory.data() + (3 * (i % sets) + which) * tensor_bytes; };
      times.op.add(time_us([&] {
        HEARTH_CHECK(rmsnorm_cpu(p.args(tensor(0), tensor(1), tensor(2), weight.data()), exec), "rmsnorm failed");
      }));
      times.copy.add(time_us([&] {
        pool_.parallel_for(tensor_bytes, 65536, [&](int64_t begin, int64_t end, int) {
          std::memcpy(tensor(2) + begin, tensor(0) + begin, static_cast<size_t>(end - begin));
          if (p.residual) std::memcpy(tensor(1) + begin, tensor(0) + begin, static_cast<size_t>(end - begin));
        });
      }));
    }
    return times;
  }

 private:
  ThreadPool& pool_;
};

void run(RmsNormBench& bench, bool quick, ResultLines& lines) {
  fmt::print("{:12} {:>6} {:>6} {:5} {:8} {:>10} {:>18} {:>10} {:>9} {:>8}\n", "config", "rows", "hidden", "dtype",
             "residual", "us", "p10-p90", "copy us", "GB/s", "of copy");
  for (const Width& width : kWidths)
    for (const int64_t rows : kRows)
      for (const DType dtype : {DType::kBf16, DType::kF32})
        for (const bool residual : {true, false}) {
          if (quick && (width.hidden != 4096 || rows != 512)) continue;
          const RmsNormProblem problem{rows, width.hidden, dtype, residual};
          const RmsNormTimes times = bench.time(problem);
          const double us = times.op.median(), copy_us = times.copy.median(), gbps = problem.bytes() / us / 1e3;
          fmt::print("{:12} {:6} {:6} {:5} {:8} {:10.2f} {:8.2f}-{:<9.2f} {:10.2f} {:9.1f} {:7.0f}%\n", width.config,
                     rows, width.hidden, dtype_name(dtype), residual, us, times.op.percentile(10),
                     times.op.percentile(90), copy_us, gbps, 100 * copy_us / us);
          lines.write(
              "op.rmsnorm",
              fmt::format(
                  "\"config\": {}, \"rows\": {}, \"hidden\": {}, \"act\": {}, \"residual\": {}, \"us\": {:.2f}, "
                  "\"us_p10\": {:.2f}, \"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"gbps\": {:.1f}",
                  quote(width.config), rows, width.hidden, quote(dtype_name(dtype)), residual, us,
                  times.op.percentile(10), times.op.percentile(90), copy_us, gbps));
        }
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  std::string out, backend = "cpu";
  int threads = 0;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    if (flag == "--quick") {
      quick = true;
    } else if (flag == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else if (flag == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else if (flag == "--backend" && i + 1 < argc) {
      backend = argv[++i];
    } else {
      fmt::print(stderr, "usage: rmsnorm_bench [--backend cpu|sm90] [--threads N] [--out FILE] [--quick]\n");
      return 2;
    }
  }
  hearth::ThreadPool pool(backend == "cpu" ? threads : 1);
  std::unique_ptr<hearth::RmsNormBench> bench;
  std::string device;
  if (backend == "cpu") {
    bench = std::make_unique<hearth::CpuBench>(pool);
  } else {
    auto made = hearth::make_rmsnorm_sm90_bench(device);
    if (!made) {
      fmt::print(stderr, "rmsnorm_bench: {}\n", made.error().message);
      return hearth::exit_code(made.error().code);
    }
    bench = *std::move(made);
  }
  hearth::ResultLines lines(out, pool.size(), argc, argv, "");
  if (!device.empty()) lines.set_device(device);
  fmt::print("{}\n", lines.device());
  hearth::run(*bench, quick, lines);
}
