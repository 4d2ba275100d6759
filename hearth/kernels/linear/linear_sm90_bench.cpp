// SPDX-License-Identifier: Apache-2.0
// Times the linear layer on a GPU: plain weights of f32 and bf16 and every quantized format with f32 activations, and
// cuBLASLt in bf16 beside them. A round starts every op once, in turn, so that each finds the caches filled with
// another's weights.
// The tensor cores' ops for bf16 activations stand beside cuBLASLt; --only tensor-cores times these alone.
//   linear_sm90_bench [--only FORMAT] [--out FILE] [--note TEXT]
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/linear/linear_bench_formats.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {
namespace {

struct Product {
  const char* layer;
  int64_t m, n, k;
};
constexpr Product kProducts[] = {{"fable-82m gate_up", 1024, 4096, 768},   {"fable-82m down", 1024, 768, 2048},
                                 {"fable-82m lm_head", 1024, 8192, 768},   {"Llama-3-8B gate_up", 1024, 28672, 4096},
                                 {"fable-82m gate_up", 1, 4096, 768},      {"Llama-3-8B gate_up", 1, 28672, 4096},
                                 {"Llama-3-8B down", 1, 4096, 14336},      {"Llama-3-8B qkv", 1, 6144, 4096},
                                 {"Llama-3-8B o", 1, 4096, 4096},          {"Llama-3-8B gate_up", 8, 28672, 4096},
                                 {"Llama-3-8B down", 8, 4096, 14336},      {"Llama-3-8B gate_up", 16, 28672, 4096},
                                 {"Llama-3-8B down", 16, 4096, 14336},     {"Llama-3-8B gate_up", 32, 28672, 4096},
                                 {"Llama-3-8B down", 32, 4096, 14336},     {"Llama-3-8B qkv", 32, 6144, 4096},
                                 {"Llama-3-8B gate_up", 4096, 28672, 4096}};
constexpr int kRounds = 7;

DeviceBuffer to_device(std::span<const std::byte> from) {
  DeviceBuffer buffer = or_exit(DeviceBuffer::allocate(static_cast<int64_t>(from.size())));
  or_exit(buffer.copy_from_host(from));
  return buffer;
}

// Random numbers of a float type.
DeviceBuffer numbers(DType dtype, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(dtype_bytes(dtype, count)));
  Random random(7);
  for (size_t i = 0; i < std::min<size_t>(bytes.size(), 1 << 20); i += static_cast<size_t>(dtype_bytes(dtype, 1))) {
    const float value = random.uniform(-0.1f, 0.1f);
    const bf16 half = bf16::from_float(value);
    std::memcpy(&bytes[i], dtype == DType::kF32 ? static_cast<const void*>(&value) : &half,
                static_cast<size_t>(dtype_bytes(dtype, 1)));
  }
  repeat_first_piece(bytes);
  return to_device(std::as_bytes(std::span(bytes)));
}

// One op with its weight.
struct Rival {
  std::string name;
  LinearOp op;
  DType x;
  DeviceBuffer memory;
  LinearWeight weight;
  Samples us;
};

constexpr LinearOp kSm90{"linear_sm90", linear_sm90_workspace_bytes, linear_sm90};
constexpr LinearOp kCublasLt{"linear_cublaslt", linear_cublaslt_workspace_bytes, linear_cublaslt};
constexpr LinearOp kBf16{"linear_bf16_sm90", linear_cublaslt_workspace_bytes, linear_bf16_sm90};
constexpr LinearOp kFp8{"linear_fp8_sm90", linear_fp8_sm90_workspace_bytes, linear_fp8_sm90};
constexpr LinearOp kQuantized{"linear_quantized_sm90", linear_quantized_sm90_workspace_bytes, linear_quantized_sm90};

Rival plain(std::string name, const LinearOp& op, DType x, DType dtype, int64_t n, int64_t k) {
  DeviceBuffer memory = numbers(dtype, n * k);
  LinearWeight weight{.format = WeightFormat::plain(dtype), .n = n, .k = k};
  weight.codes = ConstTensorView(memory.data(), dtype, Shape{n, k});
  return {std::move(name), op, x, std::move(memory), weight, {}};
}

Rival quantized(const BenchFormat& one, int64_t n, int64_t k, bool tensor_cores) {
  const QuantizedMatrix matrix = bench_matrix(one.format, n, k);
  std::vector<std::byte> host(static_cast<size_t>(quantized_weight_bytes(one.format, n, k, false)) + 64);
  auto* const at = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(host.data()) + 63) / 64 * 64);
  LinearWeight weight = place_quantized(matrix, at);
  DeviceBuffer memory = to_device({at, host.size() - 64});
  for (ConstTensorView* view :
       {&weight.codes, &weight.scales, &weight.zeros, &weight.lines, &weight.line_scales, &weight.line_index})
    if (*view) view->data = memory.data() + (static_cast<const std::byte*>(view->data) - at);
  if (supports_linear_fp8_sm90(one.format, DType::kBf16) && tensor_cores)
    return {one.name + " tensor cores", kFp8, DType::kBf16, std::move(memory), weight, {}};
  return {one.name, kQuantized, DType::kF32, std::move(memory), weight, {}};
}

std::vector<Rival> rivals(const std::string& only, int64_t n, int64_t k) {
  std::vector<Rival> all;
  const bool cuda_cores = only != "tensor-cores";
  all.push_back(plain("cublaslt", kCublasLt, DType::kBf16, DType::kBf16, n, k));
  all.push_back(plain("bf16 tensor cores", kBf16, DType::kBf16, DType::kBf16, n, k));
  for (const BenchFormat& one : bench_formats(cuda_cores ? only : ""))
    if (supports_linear_fp8_sm90(one.format, DType::kBf16)) all.push_back(quantized(one, n, k, true));
  if (!cuda_cores) return all;
  all.push_back(plain("f32", kSm90, DType::kF32, DType::kF32, n, k));
  all.push_back(plain("bf16", kSm90, DType::kF32, DType::kBf16, n, k));
  for (const BenchFormat& one : bench_formats(only)) all.push_back(quantized(one, n, k, false));
  return all;
}

void bench(const Product& p, const std::string& only, ResultLines& lines) {
  std::vector<Rival> all = rivals(only, p.n, p.k);
  int64_t workspace_bytes = 0;
  for (const Rival& one : all) workspace_bytes = std::max(workspace_bytes, one.op.workspace_bytes(p.m, p.n, p.k, 1));
  const DeviceBuffer workspace = or_exit(DeviceBuffer::allocate(workspace_bytes));
  const DeviceBuffer x_f32 = numbers(DType::kF32, p.m * p.k), x_bf16 = numbers(DType::kBf16, p.m * p.k);
  const DeviceBuffer out = or_exit(DeviceBuffer::allocate(p.m * p.n * 4));
  const Stream stream = or_exit(Stream::create());
  Event begin = or_exit(Event::create()), end = or_exit(Event::create());
  ExecContext exec{.stream = stream.handle(), .workspace = {workspace.data(), static_cast<size_t>(workspace_bytes)}};
  for (int round = -1; round < kRounds; ++round)
    for (Rival& one : all) {
      const LinearArgs args{
          .x = ConstTensorView((one.x == DType::kF32 ? x_f32 : x_bf16).data(), one.x, Shape{p.m, p.k}),
          .weight = &one.weight,
          .out = TensorView(out.data(), one.x, Shape{p.m, p.n})};
      or_exit(begin.record(stream));
      or_exit(one.op.run(args, exec));
      or_exit(end.record(stream));
      const double us = or_exit(end.us_since(begin));
      if (round >= 0) one.us.add(us);
    }
  const double flops = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  fmt::print("{} M {} N {} K {}\n", p.layer, p.m, p.n, p.k);
  for (const Rival& one : all) {
    const auto bytes = static_cast<double>(one.weight.format.stored_bytes(p.n, p.k));
    fmt::print("  {:15} {:9.1f} us [{:.1f}, {:.1f}] {:7.2f} TFLOP/s {:7.1f} GB/s of weights\n", one.name,
               one.us.median(), one.us.percentile(10), one.us.percentile(90), flops / one.us.median() / 1e6,
               bytes / one.us.median() / 1e3);
    lines.write("op.linear",
                fmt::format("\"format\": {}, \"act\": \"{}\", \"layer\": {}, \"M\": {}, \"N\": {}, \"K\": {}, \"op\": "
                            "{}, \"us\": {:.2f}, \"us_p10\": {:.2f}, \"us_p90\": {:.2f}, \"tflops\": {:.3f}, "
                            "\"weight_bytes\": {:.0f}, \"rounds\": {}",
                            quote(one.name), dtype_name(one.x), quote(p.layer), p.m, p.n, p.k, quote(one.op.name),
                            one.us.median(), one.us.percentile(10), one.us.percentile(90),
                            flops / one.us.median() / 1e6, bytes, kRounds));
  }
}

int main_with(int argc, char** argv) {
  std::string only, out, note;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--only") only = argv[i + 1];
    if (name == "--out") out = argv[i + 1];
    if (name == "--note") note = argv[i + 1];
  }
  ResultLines lines(out, 1, argc, argv, note);
  lines.set_device(or_exit(cuda_device_info(0)).name);
  fmt::print("{}\n", lines.device());
  or_exit(prepare_cublaslt());
  for (const Product& product : kProducts) bench(product, only, lines);
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::main_with(argc, argv); }
