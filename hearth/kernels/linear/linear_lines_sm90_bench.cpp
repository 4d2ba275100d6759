// SPDX-License-Identifier: Apache-2.0
// Times weights of bitvectors on a GPU (linear_lines_sm90.cuh, and every tile of linear_lines_wide_sm90.cuh) beside the
// op for weights of E4M3: x in bf16, its rounding included. Each is a graph of dependent calls over copies of its
// weights that L2 does not hold; rounds alternate between them.
//   linear_lines_sm90_bench [--only LAYER] [--tokens M,M,...] [--lines N] [--out FILE] [--note TEXT]
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/gpu_weights_for_bench.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_lines_wide_sm90.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int kRounds = 7;
constexpr double kI8FlopsPerUs = 1.53e9;  // E4M3's rate

struct Rival {
  std::string name;
  const PackedCopies* copies;
  Status (*run)(const LinearArgs& args, ExecContext& exec);  // null: the wide kernel with this tile
  sm90::LineTile tile = sm90::LineTile::kChosen;
  Graph graph = {};
  Samples us = {};
};

using sm90::LineTile;
constexpr struct {
  const char* name;
  LineTile tile;
  int tokens;
} kTiles[] = {
    {"128x32", LineTile::k128x32, 32}, {"128x64", LineTile::k128x64, 64}, {"128x128", LineTile::k128x128, 128}};

DeviceBuffer random_x(int64_t count) {
  std::vector<bf16> host(static_cast<size_t>(count));
  Random random(9);
  for (bf16& x : host) x = bf16::from_float(random.uniform(-1, 1));
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(2 * count));
  or_exit(buffer.copy_from_host(std::as_bytes(std::span(host))));
  return buffer;
}

std::vector<Rival> rivals_at(int64_t m, const PackedCopies& lines, const PackedCopies& fp8) {
  std::vector<Rival> rivals;
  rivals.push_back({"fp8", &fp8, linear_fp8_sm90});
  rivals.push_back({"op", &lines, linear_lines_sm90});
  if (m > 16)
    for (const auto& tile : kTiles)
      // But tiles that waste much of their tokens, or that decode W too often.
      if (tile.tokens < 2 * m + 32 && m <= 4 * tile.tokens + (tile.tokens == 128) * m)
        rivals.push_back({tile.name, &lines, nullptr, tile.tile});
  return rivals;
}

void bench(const BenchLayer& layer, int64_t m, const PackedCopies& copies, const PackedCopies& fp8,
           const Stream& stream, ResultLines& lines) {
  const int64_t n = layer.n, k = layer.k;
  const int64_t workspace_bytes =
      std::max({linear_lines_sm90_workspace_bytes(m, n, k, 1), linear_fp8_sm90_workspace_bytes(m, n, k, 1),
                sm90::lines_wide_workspace_bytes(m, k)});
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  const DeviceBuffer x = random_x(m * k), out = or_exit(DeviceBuffer::allocate(m * n * 2));
  DeviceBuffer zeros = or_exit(DeviceBuffer::allocate(StagedMemory::kCounters * 4));
  const std::vector<std::byte> nothing(StagedMemory::kCounters * 4);
  or_exit(zeros.copy_from_host(nothing));
  ExecContext exec{.stream = stream.handle(), .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)}};
  exec.staged.counters = static_cast<uint32_t*>(static_cast<void*>(zeros.data()));
  const int64_t calls = m >= 1024 ? 6 : m >= 256 ? 12 : 40;
  std::vector<Rival> rivals = rivals_at(m, copies, fp8);
  for (Rival& rival : rivals) {
    const auto run = [&](int64_t i) {
      const std::vector<LinearWeight>& weights = rival.copies->weights;
      const LinearArgs args{.x = ConstTensorView(x.data(), DType::kBf16, Shape{m, k}),
                            .weight = &weights[static_cast<size_t>(i) % weights.size()],
                            .out = TensorView(out.data(), DType::kBf16, Shape{m, n})};
      return rival.run != nullptr ? rival.run(args, exec) : sm90::linear_lines_wide_sm90({&args, 1}, exec, rival.tile);
    };
    or_exit(run(0));
    or_exit(stream.synchronize());
    rival.graph = or_exit(Graph::capture(stream, [&]() -> Status {
      for (int64_t i = 0; i < calls; ++i) HEARTH_TRY(run(i));
      return {};
    }));
  }
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());
  for (int round = -1; round < kRounds; ++round)
    for (Rival& rival : rivals) {
      or_exit(begin.record(stream));
      or_exit(rival.graph.launch(stream));
      or_exit(end.record(stream));
      const double us = or_exit(end.us_since(begin)) / static_cast<double>(calls);
      if (round >= 0) rival.us.add(us);
    }
  const WeightFormat& format = copies.weights.front().format;
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const auto bytes = static_cast<double>(format.stored_bytes(n, k) + m * k + m * n * 2);
  const double copy_us = bytes / kCopyBytesPerUs, floor_us = std::max(copy_us, flops / kI8FlopsPerUs);
  const double fp8_us = rivals.front().us.median();
  // Above 64 tokens the goals are of fp8's speed.
  const double goal_us = m <= 16 ? copy_us / 0.93 + 2 : m <= 64 ? copy_us / 0.93 + 3 : fp8_us / (m <= 256 ? 1.3 : 0.92);
  fmt::print("{:10} M {:4} N {} K {}, {} lines: floor {:.2f} us, wanted {:.2f}\n", layer.name, m, n, k, format.lines,
             floor_us, goal_us);
  for (const Rival& rival : rivals) {
    const double us = rival.us.median();
    fmt::print("  {:8} {:8.2f} us [{:.2f}, {:.2f}] {:5.2f} x fp8\n", rival.name, us, rival.us.percentile(10),
               rival.us.percentile(90), fp8_us / us);
    lines.write(
        "op.linear.lines",
        fmt::format(
            "\"rival\": {}, \"layer\": {}, \"M\": {}, \"N\": {}, \"K\": {}, \"lines\": {}, \"us\": {:.2f}, "
            "\"us_p10\": {:.2f}, \"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"wanted_us\": {:.2f}, \"rounds\": {}",
            quote(rival.name), quote(layer.name), m, n, k, format.lines, us, rival.us.percentile(10),
            rival.us.percentile(90), floor_us, goal_us, kRounds));
  }
}

// Weights of E4M3 with a scale for each row, as many copies as L2 does not hold.
PackedCopies fp8_copies(const BenchLayer& layer) {
  const WeightFormat format{
      .code = WeightCode::kE4m3, .scale_layout = ScaleLayout::kRow, .act = ActFormat::kE4m3PerToken};
  const int64_t size = (quantized_weight_bytes(format, layer.n, layer.k, false) + 255) / 256 * 256;
  const int64_t copies = (kCopiesBytes + size - 1) / size;
  std::vector<std::byte> host(static_cast<size_t>(copies * size + 256));
  auto* const at = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(host.data()) + 255) / 256 * 256);
  const QuantizedMatrix matrix = bench_matrix(format, layer.n, layer.k);
  PackedCopies all{or_exit(DeviceBuffer::allocate(copies * size)), {}};
  for (int64_t i = 0; i < copies; ++i) {
    LinearWeight weight = place_quantized(matrix, at + i * size);
    for (ConstTensorView* view : {&weight.codes, &weight.scales})
      view->data = all.memory.data() + (static_cast<const std::byte*>(view->data) - at);
    all.weights.push_back(weight);
  }
  or_exit(all.memory.copy_from_host({at, static_cast<size_t>(copies * size)}));
  return all;
}

int main_with(int argc, char** argv) {
  std::string only, out, note;
  std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 4096};
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
    if (name == "--tokens") {
      tokens.clear();
      for (const char* at = argv[i + 1]; *at != 0; at += *at == ',') {
        char* end = nullptr;
        tokens.push_back(std::strtoll(at, &end, 10));
        at = end;
      }
    }
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  const Stream stream = or_exit(Stream::create());
  or_exit(prepare_cublaslt());
  for (const BenchLayer& layer : kBenchLayers) {
    if (!only.empty() && only != layer.name) continue;
    const PackedCopies copies =
        packed_copies(format, layer.n, layer.k, linear_lines_sm90_packed_bytes, linear_lines_sm90_pack, stream);
    const PackedCopies fp8 = fp8_copies(layer);
    for (const int64_t m : tokens) bench(layer, m, copies, fp8, stream, lines);
  }
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
