// SPDX-License-Identifier: Apache-2.0
// silu_mul with Highway. Element-wise: threads take pieces of rows, so that one wide row is shared too.
#include "hearth/kernels/silu_mul/silu_mul.h"

#include <algorithm>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/silu_mul/silu_mul_cpu.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/exp-inl.h"
#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

template <class T>
void silu_mul_channels(const T* gate, const T* up, T* out, int64_t n) {
  for_channels(n, [&](auto d, int64_t i) HWY_ATTR {
    const auto g = load_f32(d, gate + i);
    // With e = exp(-|g|) <= 1 neither sign overflows: g / (1 + e) for g >= 0, g e / (1 + e) below.
    const auto e = exp_f32(d, hn::Neg(hn::Abs(g)));
    const auto numerator = hn::IfThenElse(hn::Lt(g, hn::Zero(d)), hn::Mul(g, e), g);
    const auto silu = hn::Div(numerator, hn::Add(hn::Set(d, 1.0f), e));
    store_f32(d, hn::Mul(silu, load_f32(d, up + i)), out + i);
  });
}

// Pieces [begin, end) of the rows, `piece` channels each.
template <class T>
void silu_mul_pieces(const SiluMulArgs& args, int64_t piece, int64_t begin, int64_t end) {
  const int64_t ffn = args.out.cols(), pieces_per_row = (ffn + piece - 1) / piece;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t row = p / pieces_per_row, first = p % pieces_per_row * piece;
    const T* gate = args.gate_up.row<T>(row) + first;
    silu_mul_channels(gate, gate + ffn, args.out.row<T>(row) + first, std::min(piece, ffn - first));
  }
}

void silu_mul_range(const SiluMulArgs& args, int64_t piece, int64_t begin, int64_t end) {
  args.out.dtype == DType::kF32 ? silu_mul_pieces<float>(args, piece, begin, end)
                                : silu_mul_pieces<bf16>(args, piece, begin, end);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(silu_mul_range);

Status silu_mul_cpu(const SiluMulArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.rounded) return unsupported("silu_mul: rounded rows on the CPU; its linears round what they read");
  // A multiple of every vector length: where a row is cut changes nothing in how a channel is computed.
  constexpr int64_t kPiece = 2048;
  const int64_t ffn = args.out.cols();
  if (ffn == 0) return {};
  cpu::parallel_items(exec, args.out.rows() * ((ffn + kPiece - 1) / kPiece), 4 * std::min(ffn, kPiece),
                      [&](int64_t begin, int64_t end) {
                        HWY_DYNAMIC_DISPATCH(silu_mul_range)(args, kPiece, begin, end);
                      });
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
