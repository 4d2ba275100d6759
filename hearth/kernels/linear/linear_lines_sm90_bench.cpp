// SPDX-License-Identifier: Apache-2.0
// Times weights of bitvectors on a GPU (linear_lines_sm90.cuh): x in bf16, its rounding included. Each product is a
// graph of dependent calls over copies of the weight that L2 does not hold.
//   linear_lines_sm90_bench [--only LAYER] [--lines N] [--out FILE] [--note TEXT]
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/gpu_weights_for_bench.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int64_t kTokens[] = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr int kRounds = 7;
constexpr int64_t kCalls = 40;

DeviceBuffer random_x(int64_t count) {
  std::vector<bf16> host(static_cast<size_t>(count));
  Random random(9);
  for (bf16& x : host) x = bf16::from_float(random.uniform(-1, 1));
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(2 * count));
  or_exit(buffer.copy_from_host(std::as_bytes(std::span(host))));
  return buffer;
}

void bench(const BenchLayer& layer, int64_t m, const PackedCopies& copies, const Stream& stream, ResultLines& lines) {
  const int64_t n = layer.n, k = layer.k, workspace_bytes = linear_lines_sm90_workspace_bytes(m, n, k, 1);
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  const DeviceBuffer x = random_x(m * k), out = or_exit(DeviceBuffer::allocate(m * n * 2));
  ExecContext exec{.stream = stream.handle(), .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)}};
  const Graph graph = or_exit(Graph::capture(stream, [&]() -> Status {
    for (int64_t i = 0; i < kCalls; ++i)
      HEARTH_TRY(linear_lines_sm90({.x = ConstTensorView(x.data(), DType::kBf16, Shape{m, k}),
                                    .weight = &copies.weights[static_cast<size_t>(i) % copies.weights.size()],
                                    .out = TensorView(out.data(), DType::kBf16, Shape{m, n})},
                                   exec));
    return {};
  }));
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());
  Samples samples;
  for (int round = -1; round < kRounds; ++round) {
    or_exit(begin.record(stream));
    or_exit(graph.launch(stream));
    or_exit(end.record(stream));
    const double us = or_exit(end.us_since(begin)) / static_cast<double>(kCalls);
    if (round >= 0) samples.add(us);
  }
  const WeightFormat& format = copies.weights.front().format;
  const auto bytes = static_cast<double>(format.stored_bytes(n, k) + m * k + m * n * 2);
  const double us = samples.median(), floor_us = bytes / kCopyBytesPerUs;
  const double goal_us = floor_us / 0.93 + (m <= 16 ? 2 : 3);
  fmt::print("{:10} M {:3} N {} K {}, {} lines: {:7.2f} us [{:.2f}, {:.2f}], floor {:.2f}, wanted {:.2f}{}\n",
             layer.name, m, n, k, format.lines, us, samples.percentile(10), samples.percentile(90), floor_us, goal_us,
             us <= goal_us ? "" : " MORE");
  lines.write("op.linear.lines",
              fmt::format("\"layer\": {}, \"M\": {}, \"N\": {}, \"K\": {}, \"lines\": {}, \"us\": {:.2f}, \"us_p10\": "
                          "{:.2f}, \"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"rounds\": {}",
                          quote(layer.name), m, n, k, format.lines, us, samples.percentile(10), samples.percentile(90),
                          floor_us, kRounds));
}

int main_with(int argc, char** argv) {
  std::string only, out, note;
  WeightFormat format{.code = WeightCode::kBitvectors,
                      .group_k = 128,
                      .bitvectors = 4,
                      .lines = 4096,
                      .integer_lines = true,
                      .act = ActFormat::kI8PerGroup};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--lines") format.lines = std::atoi(argv[i + 1]);
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  const Stream stream = or_exit(Stream::create());
  for (const BenchLayer& layer : kBenchLayers) {
    if (!only.empty() && only != layer.name) continue;
    const PackedCopies copies =
        packed_copies(format, layer.n, layer.k, linear_lines_sm90_packed_bytes, linear_lines_sm90_pack, stream);
    for (const int64_t m : kTokens) bench(layer, m, copies, stream, lines);
  }
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
