// SPDX-License-Identifier: Apache-2.0
// The seam between rmsnorm_bench and its two backends. Benchmarks only; one thread.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/rmsnorm/rmsnorm.h"

namespace hearth {

struct RmsNormProblem {
  int64_t rows, hidden;
  DType dtype;
  bool residual;

  int64_t tensor_bytes() const { return (dtype_bytes(dtype, rows * hidden) + 255) / 256 * 256; }
  // What the op reads and writes: x and out, the residual twice. The weight is noise.
  double bytes() const { return static_cast<double>(dtype_bytes(dtype, rows * hidden) * (residual ? 4 : 2)); }
  // Copies of the three tensors that together fill `memory_bytes`, at least 2.
  int64_t sets(int64_t memory_bytes) const { return std::clamp<int64_t>(memory_bytes / (3 * tensor_bytes()), 2, 256); }
  RmsNormArgs args(std::byte* x, std::byte* residual_data, std::byte* out, const std::byte* weight) const {
    const Shape shape{rows, hidden};
    return {.x = ConstTensorView(x, dtype, shape),
            .residual = residual ? TensorView(residual_data, dtype, shape) : TensorView(),
            .weight = ConstTensorView(weight, dtype, Shape{hidden}),
            .out = TensorView(out, dtype, shape)};
  }
};

// Microseconds per call of the op, and per copy of as many bytes.
struct RmsNormTimes {
  Samples op, copy;
};

class RmsNormBench {
 public:
  virtual ~RmsNormBench() = default;
  virtual RmsNormTimes time(const RmsNormProblem& problem) = 0;
};

// Unavailable without CUDA in the build or without a GPU. `device` gets the GPU's name.
Result<std::unique_ptr<RmsNormBench>> make_rmsnorm_sm90_bench(std::string& device);

}  // namespace hearth
