// SPDX-License-Identifier: Apache-2.0
// Benchmark support: the linears of Llama-3-8B and Llama-2-7B, and copies of one packed weight on a GPU, as many as L2
// does not hold. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_bench_formats.h"
#include "hearth/memory/cuda/device.h"
#include "hearth/tensor/quantized_weight.h"

namespace hearth {

struct BenchLayer {
  const char* name;
  int64_t n, k;
};
inline constexpr BenchLayer kBenchLayers[] = {
    {"gate_up", 28672, 4096}, {"down", 4096, 14336},       {"qkv", 6144, 4096},      {"o", 4096, 4096},
    {"7b qkv", 12288, 4096},  {"7b gate_up", 22016, 4096}, {"7b down", 4096, 11008},
};

// What a copy within an H100's memory reaches (bench/peers).
inline constexpr double kCopyBytesPerUs = 3.026e6;
inline constexpr int64_t kCopiesBytes = 200'000'000;

struct PackedCopies {
  DeviceBuffer memory;
  std::vector<LinearWeight> weights;
};

// As LinearOp::packed_bytes and pack make them of a random weight.
template <class PackedBytes, class Pack>
PackedCopies packed_copies(const WeightFormat& format, int64_t n, int64_t k, PackedBytes packed_bytes, Pack pack,
                           const Stream& stream) {
  std::vector<std::byte> host(static_cast<size_t>(quantized_weight_bytes(format, n, k, false)) + 64);
  auto* const at = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(host.data()) + 63) / 64 * 64);
  const LinearWeight weight = place_quantized(bench_matrix(format, n, k), at);
  DeviceBuffer canonical = or_exit(DeviceBuffer::allocate(static_cast<int64_t>(host.size())));
  or_exit(canonical.copy_from_host({at, host.size() - 64}));
  const int64_t size = (packed_bytes(format, n, k) + 255) / 256 * 256;
  const int64_t copies = (kCopiesBytes + size - 1) / size;
  PackedCopies all{or_exit(DeviceBuffer::allocate(copies * size)), {}};
  for (int64_t i = 0; i < copies; ++i) {
    LinearWeight moved = weight;
    for (ConstTensorView* view :
         {&moved.codes, &moved.scales, &moved.zeros, &moved.lines, &moved.line_scales, &moved.line_index})
      if (*view) view->data = canonical.data() + (static_cast<const std::byte*>(view->data) - at);
    or_exit(pack(moved, all.memory.data() + i * size, stream.handle()));
    all.weights.push_back(moved);
  }
  or_exit(stream.synchronize());
  return all;
}

}  // namespace hearth
