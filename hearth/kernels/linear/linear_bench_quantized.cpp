// SPDX-License-Identifier: Apache-2.0
// Quantized linears against plain ones, alternated: a round runs the plain weight and then every format, so that each
// finds the caches filled with another's weights. Weights are random; a piece of 1 MiB of codes repeats.
#include "hearth/kernels/linear/linear_bench_quantized.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_bench_formats.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

HostBuffer allocate(int64_t bytes) {
  Result<HostBuffer> buffer = HostBuffer::allocate(bytes);
  if (!buffer) {
    fmt::print(stderr, "linear_bench: {}\n", buffer.error().message);
    std::exit(exit_code(buffer.error().code));
  }
  return std::move(*buffer);
}

struct Placed {
  std::string name;
  HostBuffer memory;
  LinearWeight weight;
  Samples us, ratio;
};

// A plain weight and the formats, placed.
struct Rivals {
  HostBuffer plain_memory;
  LinearWeight plain;
  Samples plain_us;
  std::vector<Placed> placed;

  Rivals(DType dtype, const std::string& only, int64_t n, int64_t k) {
    plain_memory = allocate(dtype_bytes(dtype, n * k));
    Random random(7);
    std::vector<uint8_t> piece(static_cast<size_t>(std::min<int64_t>(plain_memory.size_bytes(), 1 << 20)));
    for (size_t i = 0; i < piece.size(); i += static_cast<size_t>(dtype_bytes(dtype, 1))) {
      const float value = random.uniform(-0.1f, 0.1f);
      const bf16 half = bf16::from_float(value);
      std::memcpy(piece.data() + i, dtype == DType::kF32 ? static_cast<const void*>(&value) : &half,
                  static_cast<size_t>(dtype_bytes(dtype, 1)));
    }
    std::memcpy(plain_memory.data(), piece.data(), piece.size());
    repeat_first_piece(
        {reinterpret_cast<uint8_t*>(plain_memory.data()), static_cast<size_t>(plain_memory.size_bytes())});
    plain.format = WeightFormat::plain(dtype);
    plain.n = n, plain.k = k;
    plain.codes = ConstTensorView(plain_memory.data(), dtype, Shape{n, k});
    for (const BenchFormat& one : bench_formats(only)) {
      HostBuffer memory = allocate(quantized_weight_bytes(one.format, n, k, false));
      LinearWeight weight = place_quantized(bench_matrix(one.format, n, k), memory.data());
      placed.push_back({one.name, std::move(memory), weight, {}, {}});
    }
  }
};

// `rounds` alternated rounds of m tokens, and their report.
void bench_shape(const char* layer, int64_t m, Rivals& rivals, int rounds, ThreadPool& pool, ResultLines& lines) {
  const int64_t n = rivals.plain.n, k = rivals.plain.k;
  HostBuffer workspace = allocate(std::max(linear_cpu_workspace_bytes(m, n, k, pool.size()),
                                           linear_quantized_cpu_workspace_bytes(m, n, k, pool.size())));
  ExecContext exec{.pool = &pool, .workspace = workspace.bytes()};
  std::vector<float> x(static_cast<size_t>(m * k)), out(static_cast<size_t>(m * n));
  Random random(3);
  for (float& v : x) v = random.normal();
  LinearArgs args{.x = ConstTensorView(x.data(), DType::kF32, Shape{m, k}),
                  .weight = &rivals.plain,
                  .out = TensorView(out.data(), DType::kF32, Shape{m, n})};
  rivals.plain_us = {};
  for (Placed& one : rivals.placed) one.us = {}, one.ratio = {};
  for (int round = -1; round < rounds; ++round) {
    args.weight = &rivals.plain;
    const double plain_us = time_us([&] { or_exit(linear_cpu(args, exec)); });
    if (round >= 0) rivals.plain_us.add(plain_us);
    for (Placed& one : rivals.placed) {
      args.weight = &one.weight;
      const double us = time_us([&] { or_exit(linear_quantized_cpu(args, exec)); });
      if (round >= 0) one.us.add(us), one.ratio.add(plain_us / us);
    }
  }
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const std::string_view plain_name = dtype_name(rivals.plain.codes.dtype);
  fmt::print("quantized {} M {} N {} K {}, {} threads: {} {:.0f} us [{:.0f}, {:.0f}] {:.1f} GFLOP/s\n", layer, m, n, k,
             pool.size(), plain_name, rivals.plain_us.median(), rivals.plain_us.percentile(10),
             rivals.plain_us.percentile(90), flops / rivals.plain_us.median() / 1e3);
  for (const Placed& one : rivals.placed) {
    const WeightFormat& format = one.weight.format;
    const auto bytes = static_cast<double>(format.stored_bytes(n, k));
    fmt::print("  {:15} {:9.0f} us [{:.0f}, {:.0f}] {:6.1f} GFLOP/s {:5.1f} GB/s, {} / it {:.2f} [{:.2f}, {:.2f}]\n",
               one.name, one.us.median(), one.us.percentile(10), one.us.percentile(90), flops / one.us.median() / 1e3,
               bytes / one.us.median() / 1e3, plain_name, one.ratio.median(), one.ratio.percentile(10),
               one.ratio.percentile(90));
    lines.write("op.linear",
                fmt::format("\"format\": \"{}\", \"weight\": {}, \"act\": \"f32\", \"config\": \"Llama-3-8B\", "
                            "\"layer\": \"{}\", \"N\": {}, \"K\": {}, \"M\": {}, \"us\": {:.1f}, \"us_p10\": {:.1f}, "
                            "\"us_p90\": {:.1f}, \"peers\": {{\"{}\": {:.1f}}}, \"ratio_median\": {:.3f}, "
                            "\"ratio_p10\": {:.3f}, \"ratio_p90\": {:.3f}, \"rounds\": {}, \"path\": \"{}\"",
                            one.name, quote(to_string(format)), layer, n, k, m, one.us.median(), one.us.percentile(10),
                            one.us.percentile(90), plain_name, rivals.plain_us.median(), one.ratio.median(),
                            one.ratio.percentile(10), one.ratio.percentile(90), rounds,
                            m <= quantized_plan::kDirectTokens ? "direct" : "panel"));
  }
}

}  // namespace

void bench_quantized_decode(const QuantizedBenchOptions& options, ThreadPool& pool, ResultLines& lines) {
  const int rounds = options.reps > 0 ? options.reps : 20;
  {
    Rivals rivals(DType::kBf16, options.only, 28672, 4096);
    for (int64_t m : {1, 2, 4}) bench_shape("gate_up", m, rivals, rounds, pool, lines);
  }
  Rivals rivals(DType::kBf16, options.only, 4096, 14336);
  bench_shape("down", 1, rivals, rounds, pool, lines);
}

void bench_quantized_prefill(const QuantizedBenchOptions& options, ThreadPool& pool, ResultLines& lines) {
  const int rounds = options.reps > 0 ? options.reps : 7;
  {
    Rivals rivals(DType::kF32, options.only, 2048, 768);
    bench_shape("2048x768", 512, rivals, rounds, pool, lines);
  }
  Rivals rivals(DType::kF32, options.only, 4096, 4096);
  bench_shape("o", 512, rivals, rounds, pool, lines);
}

}  // namespace hearth
