// SPDX-License-Identifier: Apache-2.0
// silu_mul as it is written down, in double, with one rounding at the end. One thread.
#include <cmath>

#include "hearth/kernels/silu_mul/silu_mul.h"

namespace hearth {
namespace {

template <class T>
void silu_mul_rows(const SiluMulArgs& args) {
  const int64_t ffn = args.out.cols();
  for (int64_t r = 0; r < args.out.rows(); ++r) {
    const T* gate = args.gate_up.row<T>(r);
    const T* up = gate + ffn;
    T* out = args.out.row<T>(r);
    for (int64_t i = 0; i < ffn; ++i) {
      const double g = to_float(gate[i]);
      out[i] = from_float<T>(static_cast<float>(g / (1 + std::exp(-g)) * to_float(up[i])));
    }
  }
}

}  // namespace

Status silu_mul_ref(const SiluMulArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  args.out.dtype == DType::kF32 ? silu_mul_rows<float>(args) : silu_mul_rows<bf16>(args);
  return {};
}

}  // namespace hearth
