// SPDX-License-Identifier: Apache-2.0
// Times 4-bit weights in units by few tokens on a GPU (linear_units_sm90.h): x in bf16, its rounding included, and x that
// comes rounded. Each is a graph of dependent launches over copies of the weights that L2 does not hold; rounds alternate
// between them.
//   linear_units_sm90_bench [--only LAYER] [--rings all] [--out FILE] [--note TEXT]
// --rings all: every way to divide the ring, too.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/gpu_weights_for_bench.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_units_sm90.h"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int64_t kTokens[] = {1, 2, 4, 8, 16};
constexpr int kRounds = 7;
constexpr int64_t kCalls = 40;

struct Weights {
  std::string name;
  WeightFormat format;
  PackedCopies copies;
};

struct Rival {
  std::string name;
  const Weights* weights;
  bool comes_rounded;
  sm90::UnitsRing ring = {};
  Graph graph = {};
  Samples us = {};
};

DeviceBuffer random_x(int64_t count, bool e4m3_codes) {
  std::vector<uint8_t> host(static_cast<size_t>(count * (e4m3_codes ? 1 : 2)));
  Random random(9);
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.uniform(-1, 1);
    const bf16 half = bf16::from_float(value);
    const e4m3 code = e4m3::from_float(448 * value);
    if (e4m3_codes) {
      host[static_cast<size_t>(i)] = code.bits;
    } else {
      std::memcpy(&host[static_cast<size_t>(2 * i)], &half, 2);
    }
  }
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(static_cast<int64_t>(host.size())));
  or_exit(buffer.copy_from_host(std::as_bytes(std::span(host))));
  return buffer;
}

void bench(const BenchLayer& layer, int64_t m, const std::vector<Weights>& weights, bool rings, const Stream& stream,
           ResultLines& lines) {
  const int64_t n = layer.n, k = layer.k;
  std::vector<Rival> rivals;
  for (const Weights& one : weights) {
    const bool rounds = one.format.act != ActFormat::kNative;
    rivals.push_back({one.name, &one, false});
    if (rounds) rivals.push_back({one.name + " rounded", &one, true});
    if (rings && &one == &weights.front())
      for (const int piece : {4, 2, 1})
        for (const int slots : {1, 2, 3, 4, 6})
          rivals.push_back({fmt::format("{} rounded {}x{}", one.name, slots, piece), &one, true, {piece, slots}});
  }
  const int64_t workspace_bytes = linear_nibble_sm90_workspace_bytes(m, n, k, 1);
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  const DeviceBuffer x = random_x(m * k, false), codes = random_x(m * k, true);
  const DeviceBuffer x_scale = or_exit(DeviceBuffer::allocate(m * 4)), out = or_exit(DeviceBuffer::allocate(m * n * 2));
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());
  ExecContext exec{.stream = stream.handle(), .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)}};
  for (Rival& rival : rivals) {
    const auto run = [&](int64_t i) {
      const std::vector<LinearWeight>& copies = rival.weights->copies.weights;
      LinearArgs args{.x = ConstTensorView(x.data(), DType::kBf16, Shape{m, k}),
                      .weight = &copies[static_cast<size_t>(i) % copies.size()],
                      .out = TensorView(out.data(), DType::kBf16, Shape{m, n})};
      if (rival.comes_rounded) {
        args.x = ConstTensorView(codes.data(), DType::kE4m3, Shape{m, k});
        args.x_scale = ConstTensorView(x_scale.data(), DType::kF32, Shape{m});
      }
      return rival.ring.piece > 0 ? sm90::linear_units({&args, 1}, stream.handle(), rival.ring)
                                  : linear_nibble_sm90(args, exec);
    };
    const Status first = run(0);
    if (rival.ring.piece > 0 && !first) continue;  // does not fit
    or_exit(first);
    or_exit(stream.synchronize());
    rival.graph = or_exit(Graph::capture(stream, [&]() -> Status {
      for (int64_t i = 0; i < kCalls; ++i) HEARTH_TRY(run(i));
      return {};
    }));
  }
  std::erase_if(rivals, [](const Rival& rival) { return !rival.graph; });
  for (int round = -1; round < kRounds; ++round)
    for (Rival& rival : rivals) {
      or_exit(begin.record(stream));
      or_exit(rival.graph.launch(stream));
      or_exit(end.record(stream));
      const double us = or_exit(end.us_since(begin)) / static_cast<double>(kCalls);
      if (round >= 0) rival.us.add(us);
    }
  fmt::print("{} M {} N {} K {}\n", layer.name, m, n, k);
  for (const Rival& rival : rivals) {
    const WeightFormat& format = rival.weights->format;
    const int64_t x_bytes = m * k * (format.act == ActFormat::kNative ? 2 : 1);
    const auto bytes = static_cast<double>(format.stored_bytes(n, k) + x_bytes + m * n * 2);
    const double us = rival.us.median(), floor_us = bytes / kCopyBytesPerUs, goal_us = floor_us / 0.93 + 2;
    fmt::print("  {:22} {:6.2f} us [{:.2f}, {:.2f}], floor {:.2f}, wanted {:.2f}{}\n", rival.name, us,
               rival.us.percentile(10), rival.us.percentile(90), floor_us, goal_us, us <= goal_us ? "" : " MORE");
    lines.write(
        "op.linear.units",
        fmt::format("\"rival\": {}, \"layer\": {}, \"M\": {}, \"N\": {}, \"K\": {}, \"us\": {:.2f}, \"us_p10\": "
                    "{:.2f}, \"us_p90\": {:.2f}, \"floor_us\": {:.2f}, \"rounds\": {}",
                    quote(rival.name), quote(layer.name), m, n, k, us, rival.us.percentile(10), rival.us.percentile(90),
                    floor_us, kRounds));
  }
}

int main_with(int argc, char** argv) {
  std::string only, rings, out, note;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--rings") rings = argv[i + 1];
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  const Stream stream = or_exit(Stream::create());
  for (const BenchLayer& layer : kBenchLayers) {
    if (!only.empty() && only != layer.name) continue;
    std::vector<Weights> weights;
    for (const BenchFormat& one : bench_formats(""))
      if (one.name == "fireq" || one.name == "fireq-c4" || one.name == "int4-zero")
        weights.push_back({one.name, one.format,
                           packed_copies(one.format, layer.n, layer.k, linear_nibble_sm90_packed_bytes,
                                         linear_nibble_sm90_pack, stream)});
    std::ranges::partition(weights, [](const Weights& one) { return one.name == "fireq"; });
    for (const int64_t m : kTokens) bench(layer, m, weights, !rings.empty(), stream, lines);
  }
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
