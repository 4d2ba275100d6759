// SPDX-License-Identifier: Apache-2.0
// The selector of silu_mul_sm90. Host code, tested without a GPU.
#include <cstdint>

#include "hearth/kernels/silu_mul/silu_mul_sm90.h"

namespace hearth::sm90 {
namespace {

bool is_aligned(const ConstTensorView& view, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         (view.rows() <= 1 || dtype_bytes(view.dtype, view.row_stride) % bytes == 0);
}

}  // namespace

int select_silu_round_config(const SiluMulArgs& args, int multiprocessors) {
  constexpr int kFew = 0, kWide = 1, kSome = 2, kMany = 3, kAny = 4;
  static_assert(kAny == kSiluRoundConfigCount - 1 && kSiluRoundConfigs[kAny].vectors == 0, "it takes every row");
  const ConstTensorView codes = args.rounded.codes;
  const int64_t ffn = codes.cols(), vectors = ffn / 8;
  if (ffn % 8 != 0 || !is_aligned(args.gate_up, 16) || !is_aligned(codes, 8) || (args.out && !is_aligned(args.out, 16)))
    return kAny;
  // One block for each row leaves multiprocessors idle; from a third of them on that is faster than to agree.
  if (vectors <= kSiluRoundConfigs[kFew].max_vectors() && 3 * codes.rows() < multiprocessors) return kFew;
  if (vectors <= kSiluRoundConfigs[kSome].max_vectors() && codes.rows() <= multiprocessors) return kSome;
  if (vectors <= kSiluRoundConfigs[kMany].max_vectors()) return kMany;
  return vectors <= kSiluRoundConfigs[kWide].max_vectors() ? kWide : kAny;
}

}  // namespace hearth::sm90
