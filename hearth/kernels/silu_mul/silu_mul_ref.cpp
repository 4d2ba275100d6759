// SPDX-License-Identifier: Apache-2.0
// silu_mul as it is written down, in double, with one rounding at the end. One thread.
#include <cmath>

#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/silu_mul/silu_mul.h"

namespace hearth {
namespace {

template <class T>
void silu_mul_rows(const SiluMulArgs& args) {
  const int64_t ffn = args.gate_up.cols() / 2;
  for (int64_t r = 0; r < args.gate_up.rows(); ++r) {
    const T* gate = args.gate_up.row<T>(r);
    const T* up = gate + ffn;
    const auto value = [&](int64_t i) {
      const double g = to_float(gate[i]);
      return from_float<T>(static_cast<float>(g / (1 + std::exp(-g)) * to_float(up[i])));
    };
    if (args.rounded) round_row(args.rounded, r, [&](int64_t i) { return to_float(value(i)); });
    if (args.out)
      for (int64_t i = 0; i < ffn; ++i) args.out.row<T>(r)[i] = value(i);
  }
}

}  // namespace

Status silu_mul_ref(const SiluMulArgs& args, ExecContext&) {
  HEARTH_TRY(validate(args));
  args.gate_up.dtype == DType::kF32 ? silu_mul_rows<float>(args) : silu_mul_rows<bf16>(args);
  return {};
}

}  // namespace hearth
