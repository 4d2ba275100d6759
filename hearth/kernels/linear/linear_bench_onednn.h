// SPDX-License-Identifier: Apache-2.0
// Benchmark support: oneDNN's matrix product as the peer of linear_cpu, where the library is installed.
// Uses the OpenMP threads of OMP_NUM_THREADS. Single-threaded use.
#pragma once

#include <cstdint>
#include <memory>

#include "hearth/base/result.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

// out [m, n] f32 = x [m, k] W^T, W [n, k] row-major, x and W of one type.
class OneDnnMatmul {
 public:
  virtual ~OneDnnMatmul() = default;
  virtual void run() = 0;
  virtual const char* implementation() const = 0;
};

struct OneDnnArgs {
  int64_t m = 0, n = 0, k = 0;
  DType type = DType::kF32;  // f32 or bf16
  bool own_layout = false;   // W reordered into the layout that oneDNN prefers, when it is made
  const void* x = nullptr;
  const void* weight = nullptr;
  float* out = nullptr;
};

// Unavailable where the benchmark was built without oneDNN. Instructions are capped to those that our
// own dispatch uses: AVX-512 with VNNI, without BF16 and AMX.
Result<std::unique_ptr<OneDnnMatmul>> make_onednn_matmul(const OneDnnArgs& args);

}  // namespace hearth
