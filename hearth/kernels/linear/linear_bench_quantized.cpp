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
#include "hearth/kernels/linear/linear_quantized_plan.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

struct Named {
  std::string name;
  WeightFormat format;
};

std::vector<Named> formats(const std::string& only) {
  using enum WeightCode;
  const auto int4 = [](WeightCode code, int64_t group, bool zeros, ActFormat act) {
    return WeightFormat{.code = code,
                        .scale_layout = group > 0 ? ScaleLayout::kGroup : ScaleLayout::kRow,
                        .scale_dtype = DType::kF16,
                        .group_k = group,
                        .has_zero_point = zeros,
                        .act = act};
  };
  const auto sbvr = [](int bitvectors, int64_t lines, bool integer, ActFormat act) {
    return WeightFormat{.code = kBitvectors,
                        .group_k = 128,
                        .bitvectors = bitvectors,
                        .lines = lines,
                        .integer_lines = integer,
                        .act = act};
  };
  const ActFormat native = ActFormat::kNative, e4m3 = ActFormat::kE4m3PerToken, i8 = ActFormat::kI8PerGroup;
  std::vector<Named> all = {
      {"fp8", {.code = kE4m3, .scale_layout = ScaleLayout::kRow, .act = e4m3}},
      {"fp8-block", {.code = kE4m3, .scale_layout = ScaleLayout::kBlock, .group_k = 128, .block_n = 128, .act = e4m3}},
      {"int4", int4(kU4, 128, false, native)},
      {"int4-zero", int4(kU4, 128, true, native)},
      {"int4-row", int4(kU4, 0, false, native)},
      {"int4-g64", int4(kU4, 64, false, native)},
      {"int4-g32", int4(kU4, 32, false, native)},
      {"fireq", int4(kI4SignMagnitude, 128, false, e4m3)},
      {"fireq-c4", int4(kC4, 128, false, e4m3)},
      {"sbvr", sbvr(4, 4096, true, i8)},
      {"sbvr-3", sbvr(3, 4096, true, i8)},
      {"sbvr-native", sbvr(4, 4096, true, native)},
      {"sbvr-f16-lines", sbvr(4, 65536, false, i8)},
  };
  std::erase_if(all, [&](const Named& one) { return !one.name.starts_with(only); });
  return all;
}

HostBuffer allocate(int64_t bytes) {
  Result<HostBuffer> buffer = HostBuffer::allocate(bytes);
  if (!buffer) {
    fmt::print(stderr, "linear_bench: {}\n", buffer.error().message);
    std::exit(exit_code(buffer.error().code));
  }
  return std::move(*buffer);
}

void repeat(std::span<uint8_t> bytes) {
  const size_t piece = std::min<size_t>(bytes.size(), 1 << 20);
  for (size_t at = piece; at < bytes.size(); at += piece)
    std::memcpy(bytes.data() + at, bytes.data(), std::min(piece, bytes.size() - at));
}

QuantizedMatrix make(const WeightFormat& format, int64_t n, int64_t k) {
  Random random(7);
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.n = n, matrix.k = k;
  matrix.codes.resize(static_cast<size_t>(n * matrix.row_bytes()));
  const bool is_e4m3 = format.code == WeightCode::kE4m3;
  for (size_t i = 0; i < std::min<size_t>(matrix.codes.size(), 1 << 20); ++i)
    matrix.codes[i] = is_e4m3 ? e4m3::from_float(random.normal() * 90).bits : static_cast<uint8_t>(random.next_u32());
  repeat(matrix.codes);
  matrix.scales.resize(static_cast<size_t>(format.scale_count(n, k)));
  for (float& scale : matrix.scales) scale = f16::from_float(random.uniform(0.001f, 0.002f)).to_float();
  if (format.has_zero_point) matrix.zeros.assign(matrix.scales.size(), 7);
  if (format.code != WeightCode::kBitvectors) return matrix;
  if (format.bitvectors < 4)
    for (uint8_t& code : matrix.codes) code &= static_cast<uint8_t>(0x11 * ((1 << format.bitvectors) - 1));
  matrix.lines.resize(static_cast<size_t>(format.lines * format.bitvectors));
  for (float& c : matrix.lines) c = static_cast<float>(random.below(63) - 31) * (format.integer_lines ? 1 : 0x1p-10f);
  if (format.integer_lines) matrix.line_scales.assign(static_cast<size_t>(format.lines), 0x1p-10f);
  matrix.line_index.resize(static_cast<size_t>(n * (k / format.group_k)));
  for (uint16_t& index : matrix.line_index) index = static_cast<uint16_t>(random.below(format.lines));
  return matrix;
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
    repeat({reinterpret_cast<uint8_t*>(plain_memory.data()), static_cast<size_t>(plain_memory.size_bytes())});
    plain.format = WeightFormat::plain(dtype);
    plain.n = n, plain.k = k;
    plain.codes = ConstTensorView(plain_memory.data(), dtype, Shape{n, k});
    for (const Named& one : formats(only)) {
      HostBuffer memory = allocate(quantized_weight_bytes(one.format, n, k, false));
      LinearWeight weight = place_quantized(make(one.format, n, k), memory.data());
      placed.push_back({one.name, std::move(memory), weight, {}, {}});
    }
  }
};

void or_exit(const Status& status) {
  if (status) return;
  fmt::print(stderr, "linear_bench: {}\n", status.error().message);
  std::exit(1);
}

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
