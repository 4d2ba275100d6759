// SPDX-License-Identifier: Apache-2.0
// attention on Hopper: validate, select, launch.
#include "hearth/kernels/attention/attention_sm90.cuh"

#include <algorithm>
#include <utility>

#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

// A GPU of 132 multiprocessors has enough to do with this many blocks.
constexpr int64_t kEnoughBlocks = 1024;

template <int kIndex, class T, class Kv>
Status start(const AttentionArgs& args, ExecContext& exec) {
  constexpr sm90::AttentionConfig kConfig = sm90::kAttentionConfigs[kIndex];
  HEARTH_TRY_ASSIGN(const sm90::DeviceStep step, sm90::device_step("attention", *args.batch, exec));
  const KvLayout& layout = args.kv.layout;
  const int64_t tokens = args.q.rows(), group = args.heads / layout.kv_heads;
  const int64_t group_blocks = (group + kConfig.group - 1) / kConfig.group;
  const int64_t longest = *std::ranges::max_element(args.batch->context_len);
  sm90::AttentionParams<T> params{.q = static_cast<const T*>(args.q.data),
                                  .out = static_cast<T*>(args.out.data),
                                  .q_stride = args.q.row_stride,
                                  .out_stride = args.out.row_stride,
                                  .step = step,
                                  .kv = sm90::device_kv(args.kv, args.layer),
                                  .partials = nullptr,
                                  .partial_floats = sm90::attention_partial_floats(layout.head_dim),
                                  .heads = static_cast<int>(args.heads),
                                  .kv_heads = static_cast<int>(layout.kv_heads),
                                  .head_dim = static_cast<int>(layout.head_dim),
                                  .group = static_cast<int>(group),
                                  .group_blocks = static_cast<int>(group_blocks),
                                  .chunks = static_cast<int>(sm90::attention_chunks(longest)),
                                  .window = static_cast<int>(args.window),
                                  .scale = args.scale};
  const int64_t rows = layout.kv_heads * group_blocks;
  const int64_t partial_bytes =
      tokens * args.heads * params.chunks * sm90::attention_partial_floats(layout.head_dim) * 4;
  // Either way gives the same bits (attention_sm90.h, I1).
  const bool split = params.chunks > 1 && tokens * rows < kEnoughBlocks &&
                     partial_bytes <= static_cast<int64_t>(exec.workspace.size());
  if (split) params.partials = reinterpret_cast<float*>(exec.workspace.data());
  Launch how(dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(rows),
                  static_cast<unsigned>(split ? params.chunks : 1)),
             dim3(sm90::kAttentionThreads), exec.stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, sm90::attention_kernel<kIndex, T, Kv>, params));
  if (!split) return {};
  how.grid = dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(args.heads));
  return launch(how, sm90::attention_merge_kernel<T>, params);
}

template <int kIndex>
Status start_typed(const AttentionArgs& args, ExecContext& exec) {
  const bool kv_f32 = args.kv.layout.format == KvFormatId::kF32;
  if (args.q.dtype == DType::kF32)
    return kv_f32 ? start<kIndex, float, float>(args, exec) : start<kIndex, float, __nv_bfloat16>(args, exec);
  return kv_f32 ? start<kIndex, __nv_bfloat16, float>(args, exec)
                : start<kIndex, __nv_bfloat16, __nv_bfloat16>(args, exec);
}

template <int... kIndex>
Status start_config(int config, const AttentionArgs& args, ExecContext& exec, std::integer_sequence<int, kIndex...>) {
  using Start = Status (*)(const AttentionArgs&, ExecContext&);
  static constexpr Start kStart[] = {start_typed<kIndex>...};
  return kStart[config](args, exec);
}

}  // namespace

Status attention_sm90(const AttentionArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.q.rows() == 0) return {};
  const KvLayout& layout = args.kv.layout;
  if (layout.format != KvFormatId::kF32 && layout.format != KvFormatId::kBf16)
    return unsupported("attention: KV format {}, the GPU's kernel has f32 and bf16", kv_format_name(layout.format));
  if (layout.head_dim % 8 != 0 || layout.head_dim > sm90::kAttentionMaxHeadDim)
    return unsupported("attention: head dim is {}, the GPU's kernel has multiples of 8 up to {}", layout.head_dim,
                       sm90::kAttentionMaxHeadDim);
  // A stride of anything else than whole vectors would need another kernel; KvLayout::make gives multiples of 16.
  if (layout.token_stride_bytes % 16 != 0 || layout.head_stride_bytes % 16 != 0 || layout.v_offset_bytes % 16 != 0 ||
      layout.layer_stride_bytes % 16 != 0)
    return unsupported("attention: KV strides of {} and {} bytes, the GPU's kernel has multiples of 16",
                       layout.token_stride_bytes, layout.head_stride_bytes);
  return start_config(sm90::select_attention_config(args.heads / layout.kv_heads, layout.head_dim), args, exec,
                      std::make_integer_sequence<int, sm90::kAttentionConfigCount>());
}

}  // namespace hearth
