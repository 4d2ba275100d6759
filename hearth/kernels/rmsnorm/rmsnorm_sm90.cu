// SPDX-License-Identifier: Apache-2.0
// rmsnorm on Hopper: validate, select, launch.
#include "hearth/kernels/rmsnorm/rmsnorm_sm90.cuh"

#include <utility>

#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

template <int kIndex, bool kRounds, class T, class W>
Status start(const RmsNormArgs& args, ExecContext& exec) {
  constexpr sm90::RmsNormConfig kConfig = sm90::kRmsNormConfigs[kIndex];
  const sm90::RmsNormParams<T, W> params{
      .x = static_cast<const T*>(args.x.data),
      .residual = static_cast<T*>(args.residual.data),
      .weight = static_cast<const W*>(args.weight.data),
      .out = static_cast<T*>(args.out.data),
      .x_stride = args.x.row_stride,
      .residual_stride = args.residual.row_stride,
      .out_stride = args.out.row_stride,
      .rows = args.x.rows(),
      .hidden = static_cast<int>(args.x.cols()),
      .eps = args.eps,
      .codes = static_cast<uint8_t*>(args.rounded.codes.data),
      .scales = static_cast<float*>(args.rounded.scales.data),
      .static_scale = static_cast<const float*>(args.rounded.static_scale.data),
      .codes_stride = args.rounded.codes.row_stride,
  };
  const int64_t blocks = (params.rows + kConfig.block_rows - 1) / kConfig.block_rows;
  Launch how(dim3(static_cast<unsigned>(blocks)), dim3(kConfig.threads()), exec.stream);
  how.pdl = true;
  return launch(how, sm90::rmsnorm_kernel<kIndex, kRounds, T, W>, params);
}

template <int kIndex>
Status start_typed(const RmsNormArgs& args, ExecContext& exec) {
  const bool weight_f32 = args.weight.dtype == DType::kF32;
  if (args.x.dtype == DType::kF32)
    return weight_f32 ? start<kIndex, false, float, float>(args, exec)
                      : start<kIndex, false, float, __nv_bfloat16>(args, exec);
  if constexpr (sm90::kRmsNormConfigs[kIndex].f32_only) {
    HEARTH_CHECK(false, "rmsnorm: config {} is for f32 only", kIndex);
  } else if (args.rounded) {
    return weight_f32 ? start<kIndex, true, __nv_bfloat16, float>(args, exec)
                      : start<kIndex, true, __nv_bfloat16, __nv_bfloat16>(args, exec);
  } else {
    return weight_f32 ? start<kIndex, false, __nv_bfloat16, float>(args, exec)
                      : start<kIndex, false, __nv_bfloat16, __nv_bfloat16>(args, exec);
  }
}

template <int... kIndex>
Status start_config(int config, const RmsNormArgs& args, ExecContext& exec, std::integer_sequence<int, kIndex...>) {
  using Start = Status (*)(const RmsNormArgs&, ExecContext&);
  static constexpr Start kStart[] = {start_typed<kIndex>...};
  return kStart[config](args, exec);
}

}  // namespace

Status rmsnorm_sm90(const RmsNormArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.rounded && args.x.dtype != DType::kBf16)
    return unsupported("rmsnorm: rounded rows of {}, the GPU's kernel has them of bf16", dtype_name(args.x.dtype));
  if (args.x.rows() == 0) return {};
  if (args.x.rows() > INT32_MAX || args.x.cols() > INT32_MAX)
    return invalid_argument("rmsnorm: x is {}, wanted at most 2147483647 of each", to_string(args.x.shape));
  return start_config(sm90::select_rmsnorm_config(args), args, exec,
                      std::make_integer_sequence<int, sm90::kRmsNormConfigCount>());
}

}  // namespace hearth
