// SPDX-License-Identifier: Apache-2.0
// The selector of rmsnorm_sm90. Host code, tested without a GPU.
#include <cstdint>

#include "hearth/kernels/rmsnorm/rmsnorm_sm90.h"

namespace hearth::sm90 {
namespace {

constexpr int64_t kVectorBytes = 16;

bool is_aligned(const ConstTensorView& view, int64_t bytes = kVectorBytes) {
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         (view.rows() <= 1 || dtype_bytes(view.dtype, view.row_stride) % bytes == 0);
}

}  // namespace

int select_rmsnorm_config(const RmsNormArgs& args) {
  const int64_t row_bytes = dtype_bytes(args.x.dtype, args.x.cols());
  const bool vectors = row_bytes % kVectorBytes == 0 && is_aligned(args.x) && is_aligned(args.out) &&
                       is_aligned(args.weight) && (!args.residual || is_aligned(args.residual)) &&
                       (!args.rounded || is_aligned(args.rounded.codes, kVectorBytes / 2));  // as many codes as bf16
  constexpr int kLast = kRmsNormConfigCount - 1;
  static_assert(kRmsNormConfigs[kLast].row_vectors == 0 && !kRmsNormConfigs[kLast].f32_only, "it takes every row");
  for (int i = 0; i < kLast; ++i) {
    const RmsNormConfig& config = kRmsNormConfigs[i];
    if (config.f32_only && args.x.dtype != DType::kF32) continue;
    if (config.row_vectors == 0 || (vectors && row_bytes / kVectorBytes <= config.max_vectors())) return i;
  }
  return kLast;
}

}  // namespace hearth::sm90
