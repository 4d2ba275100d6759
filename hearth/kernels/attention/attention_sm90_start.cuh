// SPDX-License-Identifier: Apache-2.0
// Starts the Hopper attention kernels for one KV format (kv_read.cuh): the scratch, the split, the instance. Each
// format is compiled in a file of its own. Host code; no state.
#pragma once

#include <algorithm>
#include <utility>

#include "hearth/kernels/attention/attention_tile_sm90.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {

// All rows of the step, or those of sequences that have one.
enum class AttentionRows { kAll, kAlone };

template <int kIndex, class T, class Format>
Status start_attention(const AttentionArgs& args, const KvScales& scales, AttentionRows rows, ExecContext& exec) {
  constexpr AttentionConfig kConfig = kAttentionConfigs[kIndex];
  HEARTH_TRY_ASSIGN(const DeviceStep step, device_step("attention", *args.batch, exec));
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  const KvLayout& layout = args.kv.layout;
  const bool alone = rows == AttentionRows::kAlone;
  const int64_t sequences = args.batch->num_sequences(), group = args.heads / layout.kv_heads;
  const int64_t tokens = alone ? sequences : args.q.rows();
  const int64_t group_blocks = (group + kConfig.group - 1) / kConfig.group;
  const int64_t longest = args.batch->planned_context();
  AttentionParams<T> params{.q = static_cast<const T*>(args.q.data),
                            .out = static_cast<T*>(args.out.data),
                            .q_stride = args.q.row_stride,
                            .out_stride = args.out.row_stride,
                            .step = step,
                            .kv = device_kv(args.kv, args.layer, scales),
                            .partials = nullptr,
                            .partial_floats = attention_partial_floats(layout.head_dim),
                            .heads = static_cast<int>(args.heads),
                            .kv_heads = static_cast<int>(layout.kv_heads),
                            .head_dim = static_cast<int>(layout.head_dim),
                            .group = static_cast<int>(group),
                            .group_blocks = static_cast<int>(group_blocks),
                            .chunks = static_cast<int>(attention_chunks(longest)),
                            .window = static_cast<int>(args.window),
                            .alone = alone,
                            .rotate_q = layout.query_transform == QueryTransform::kHadamard,
                            .scale = args.scale};
  // All ways give the same bits (attention_sm90.h, I1).
  const int64_t tile_tokens = attention_tile_tokens(group);
  if (!alone && use_attention_tiles(tile_tokens, tokens, sequences, layout.kv_heads, device->multiprocessors)) {
    Launch how(dim3(static_cast<unsigned>(attention_tiles(tile_tokens, tokens, sequences)),
                    static_cast<unsigned>(layout.kv_heads)),
               dim3(kAttentionThreads), exec.stream);
    how.pdl = true;
    return launch(how, attention_tile_kernel<kConfig.max_head_dim(), T, Format>, params, static_cast<int>(tile_tokens));
  }
  const int64_t row_blocks = layout.kv_heads * group_blocks;
  const int64_t partial_bytes = tokens * args.heads * params.chunks * attention_partial_floats(layout.head_dim) * 4;
  const bool split = params.chunks > 1 && split_attention_chunks(tokens * row_blocks, device->multiprocessors) &&
                     partial_bytes <= static_cast<int64_t>(exec.workspace.size());
  if (split) params.partials = reinterpret_cast<float*>(exec.workspace.data());
  Launch how(dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(row_blocks),
                  static_cast<unsigned>(split ? params.chunks : 1)),
             dim3(kAttentionThreads), exec.stream);
  how.pdl = true;
  HEARTH_TRY(launch(how, attention_kernel<kIndex, T, Format>, params));
  if (!split) return {};
  how.grid = dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(args.heads));
  return launch(how, attention_merge_kernel<T>, params);
}

template <class Format, int... kIndex>
Status start_attention_config(int config, const AttentionArgs& args, const KvScales& scales, AttentionRows rows,
                              ExecContext& exec, std::integer_sequence<int, kIndex...>) {
  using Start = Status (*)(const AttentionArgs&, const KvScales&, AttentionRows, ExecContext&);
  static constexpr Start kF32[] = {start_attention<kIndex, float, Format>...};
  static constexpr Start kBf16[] = {start_attention<kIndex, __nv_bfloat16, Format>...};
  return (args.q.dtype == DType::kF32 ? kF32 : kBf16)[config](args, scales, rows, exec);
}

// REQUIRES: attention_sm90() has checked the arguments; `scales` are those that the format uses.
template <class Format>
Status start_attention_format(const AttentionArgs& args, const KvScales& scales, AttentionRows rows,
                              ExecContext& exec) {
  const KvLayout& layout = args.kv.layout;
  // Rows at a stride of anything else than whole vectors would need another kernel; KvLayout::make's have it.
  const int64_t vector_bytes = layout.head_dim % Format::kWide == 0 ? 16 : 8 * 16 / Format::kWide;
  for (const int64_t stride :
       {layout.token_stride_bytes, layout.head_stride_bytes, layout.v_offset_bytes, layout.layer_stride_bytes})
    if (stride % vector_bytes != 0)
      return unsupported("attention: a KV stride of {} bytes, the GPU's kernel has multiples of {}", stride,
                         vector_bytes);
  return start_attention_config<Format>(select_attention_config(args.heads / layout.kv_heads, layout.head_dim), args,
                                        scales, rows, exec, std::make_integer_sequence<int, kAttentionConfigCount>());
}

}  // namespace hearth::sm90
