// SPDX-License-Identifier: Apache-2.0
// Times 4-bit weights by many tokens on a GPU (linear_nibble_wide_sm90.h), every tile, beside the op for weights of
// E4M3 and cuBLASLt in bf16, x in bf16 and its rounding included. Each is a graph of dependent launches over copies of
// its weights that L2 does not hold; rounds alternate between them.
//   linear_nibble_wide_sm90_bench [--only LAYER] [--tokens M,M,...] [--formats NAME,...]
//     [--out FILE] [--note TEXT]
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/gpu_weights_for_bench.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_nibble_wide_sm90.h"
#include "hearth/memory/step_staging.h"

namespace hearth {
namespace {

constexpr int kLayers = 4;  // Llama-3-8B's
constexpr int kRounds = 7;
constexpr double kFp8FlopsPerUs = 1.53e9, kBf16FlopsPerUs = 0.79e9;

// A weight and its copies on the device.
struct Copies {
  WeightFormat format;
  DeviceBuffer memory;
  std::vector<LinearWeight> weights;
};

// As many as make 200 MB.
Copies place_copies(const WeightFormat& format, int64_t n, int64_t k) {
  LinearWeight weight{.format = format, .n = n, .k = k};
  std::vector<std::byte> host;
  std::byte* at = nullptr;
  const auto allot = [&](int64_t bytes) {
    host.resize(static_cast<size_t>((bytes + 255) / 256 * 256) + 256);
    at = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(host.data()) + 255) / 256 * 256);
  };
  if (format.is_plain()) {
    allot(n * k * 2);
    Random random(7);
    for (int64_t i = 0; i < int64_t{1} << 19; ++i) {
      const bf16 value = bf16::from_float(random.normal() * 0.05f);
      std::memcpy(at + 2 * i, &value, 2);
    }
    repeat_first_piece({reinterpret_cast<uint8_t*>(at), static_cast<size_t>(n * k * 2)});
    weight.codes = ConstTensorView(at, DType::kBf16, Shape{n, k});
  } else {
    allot(quantized_weight_bytes(format, n, k, false));
    weight = place_quantized(bench_matrix(format, n, k), at);
  }
  const auto size = static_cast<int64_t>(host.size()) - 256;
  const int64_t copies = (kCopiesBytes + size - 1) / size;
  Copies all{format, or_exit(DeviceBuffer::allocate(copies * size)), {}};
  std::vector<std::byte> repeated(static_cast<size_t>(copies * size));
  for (int64_t i = 0; i < copies; ++i) {
    std::memcpy(repeated.data() + i * size, at, static_cast<size_t>(size));
    LinearWeight moved = weight;
    for (ConstTensorView* view : {&moved.codes, &moved.scales, &moved.zeros})
      if (*view) view->data = all.memory.data() + i * size + (static_cast<const std::byte*>(view->data) - at);
    all.weights.push_back(moved);
  }
  or_exit(all.memory.copy_from_host(repeated));
  if (format.scale_layout != ScaleLayout::kGroup) return all;
  const Stream stream = or_exit(Stream::create());
  const int64_t units = (linear_nibble_sm90_packed_bytes(format, n, k) + 255) / 256 * 256;
  DeviceBuffer packed = or_exit(DeviceBuffer::allocate(copies * units));
  for (int64_t i = 0; i < copies; ++i)
    or_exit(linear_nibble_sm90_pack(all.weights[static_cast<size_t>(i)], packed.data() + i * units, stream.handle()));
  or_exit(stream.synchronize());
  all.memory = std::move(packed);
  return all;
}

struct Rival {
  std::string name;
  const Copies* weights;
  Status (*run)(const LinearArgs& args, ExecContext& exec);
  sm90::WideTile tile = sm90::WideTile::kChosen;
  Graph graph = {};
  Samples us = {};
};

using sm90::WideTile;
constexpr struct {
  const char* name;
  WideTile tile;
  int tokens;
  bool bf16, zeros;  // whether it is for activations of bf16, for codes with zero points
} kTiles[] = {{"128x32", WideTile::k128x32, 32, true, true},
              {"128x64", WideTile::k128x64, 64, true, true},
              {"64x64", WideTile::k64x64, 64, false, true},
              {"128x128", WideTile::k128x128, 128, true, true},
              {"192x128", WideTile::k192x128, 128, false, false}};

void bench(const BenchLayer& layer, int64_t m, const std::vector<Copies>& weights, ResultLines& lines) {
  const int64_t n = layer.n, k = layer.k;
  std::vector<Rival> rivals;
  rivals.push_back({"bf16 cublaslt", &weights[0], linear_bf16_sm90});
  rivals.push_back({"fp8", &weights[1], linear_fp8_sm90});
  for (size_t i = 2; i < weights.size(); ++i) {
    const WeightFormat& format = weights[i].format;
    const bool native = format.act == ActFormat::kNative;
    const char* const name = native                                        ? "int4 bf16"
                             : format.code == WeightCode::kI4SignMagnitude ? "fireq"
                             : format.code == WeightCode::kC4              ? "fireq-c4"
                                                                           : "int4 e4m3";
    for (const auto& tile : kTiles) {
      // Tiles that waste much of their tokens, or that read W too often.
      if (tile.tokens >= 2 * m + 32 || (m > 4 * tile.tokens && tile.tokens < 128 && !native)) continue;
      if (native && tile.tokens < 64 && m > 128) continue;
      if ((native && !tile.bf16) || (format.has_zero_point && !tile.zeros)) continue;
      rivals.push_back({fmt::format("{} {}", name, tile.name), &weights[i], nullptr, tile.tile});
    }
  }
  const int64_t workspace_bytes =
      std::max({linear_cublaslt_workspace_bytes(m, n, k, 1), linear_fp8_sm90_workspace_bytes(m, n, k, 1),
                sm90::nibble_wide_workspace_bytes(m, n, k)});
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  std::vector<bf16> host_x(static_cast<size_t>(m * k));
  Random random(9);
  for (bf16& x : host_x) x = bf16::from_float(random.uniform(-1, 1));
  DeviceBuffer x = or_exit(DeviceBuffer::allocate(m * k * 2));
  or_exit(x.copy_from_host(std::as_bytes(std::span(host_x))));
  DeviceBuffer zeros = or_exit(DeviceBuffer::allocate(StagedMemory::kCounters * 4));
  const std::vector<std::byte> nothing(StagedMemory::kCounters * 4);
  or_exit(zeros.copy_from_host(nothing));
  const DeviceBuffer out = or_exit(DeviceBuffer::allocate(m * n * 2));
  const Stream stream = or_exit(Stream::create());
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());
  ExecContext exec{.stream = stream.handle(), .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)}};
  exec.staged.counters = static_cast<uint32_t*>(static_cast<void*>(zeros.data()));
  const int64_t calls = m >= 1024 ? 6 : m >= 256 ? 12 : 40;
  for (Rival& rival : rivals) {
    const auto run = [&](int64_t i) {
      const auto& copies = rival.weights->weights;
      const LinearArgs args{.x = ConstTensorView(x.data(), DType::kBf16, Shape{m, k}),
                            .weight = &copies[static_cast<size_t>(i) % copies.size()],
                            .out = TensorView(out.data(), DType::kBf16, Shape{m, n})};
      return rival.run != nullptr ? rival.run(args, exec) : sm90::linear_nibble_wide_sm90(args, exec, rival.tile);
    };
    or_exit(run(0));
    or_exit(stream.synchronize());
    rival.graph = or_exit(Graph::capture(stream, [&]() -> Status {
      for (int64_t i = 0; i < calls; ++i) HEARTH_TRY(run(i));
      return {};
    }));
  }
  for (int round = -1; round < kRounds; ++round)
    for (Rival& rival : rivals) {
      or_exit(begin.record(stream));
      or_exit(rival.graph.launch(stream));
      or_exit(end.record(stream));
      const double us = or_exit(end.us_since(begin)) / static_cast<double>(calls);
      if (round >= 0) rival.us.add(us);
    }
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const double fp8_us = rivals[1].us.median();
  fmt::print("{} M {} N {} K {}\n", layer.name, m, n, k);
  for (const Rival& rival : rivals) {
    const WeightFormat& format = rival.weights->format;
    const bool e4m3 = format.act == ActFormat::kE4m3PerToken;
    const double bytes = static_cast<double>(format.stored_bytes(n, k) + m * k * (e4m3 ? 1 : 2) + m * n * 2);
    const double floor_us = std::max(bytes / kCopyBytesPerUs, flops / (e4m3 ? kFp8FlopsPerUs : kBf16FlopsPerUs));
    const double us = rival.us.median();
    fmt::print("  {:18} {:8.1f} us [{:.1f}, {:.1f}] {:7.1f} TFLOP/s, floor {:6.1f} us: {:3.0f} %, {:.2f} x fp8\n",
               rival.name, us, rival.us.percentile(10), rival.us.percentile(90), flops / us / 1e6, floor_us,
               100 * floor_us / us, fp8_us / us);
    lines.write(
        "op.linear.wide",
        fmt::format("\"rival\": {}, \"layer\": {}, \"M\": {}, \"N\": {}, \"K\": {}, \"us\": {:.2f}, \"us_p10\": "
                    "{:.2f}, \"us_p90\": {:.2f}, \"tflops\": {:.1f}, \"floor_us\": {:.1f}, \"rounds\": {}",
                    quote(rival.name), quote(layer.name), m, n, k, us, rival.us.percentile(10), rival.us.percentile(90),
                    flops / us / 1e6, floor_us, kRounds));
  }
}

int main_with(int argc, char** argv) {
  std::string only, out, note, formats = "fp8,fireq,fireq-c4,int4-zero";
  std::vector<int64_t> tokens = {17, 32, 64, 128, 256, 512, 1024, 4096};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--formats") formats = "fp8," + std::string(argv[i + 1]);
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
  or_exit(prepare_cublaslt());
  for (const BenchLayer& layer : std::span(kBenchLayers).first(kLayers)) {
    if (!only.empty() && only != layer.name) continue;
    std::vector<Copies> weights;
    weights.push_back(place_copies(WeightFormat::plain(DType::kBf16), layer.n, layer.k));
    for (const BenchFormat& one : bench_formats("")) {
      if (("," + formats + ",").find(fmt::format(",{},", one.name)) != std::string::npos)
        weights.push_back(place_copies(one.format, layer.n, layer.k));
    }
    std::swap(weights[1], *std::find_if(weights.begin(), weights.end(),
                                        [](const Copies& copies) { return copies.format.code == WeightCode::kE4m3; }));
    for (const int64_t m : tokens) bench(layer, m, weights, lines);
  }
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
