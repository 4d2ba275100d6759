// SPDX-License-Identifier: Apache-2.0
// What starting a tensor-core attention kernel takes, whatever the KV format. Host code; no state but what the driver
// said about the device.
#pragma once

#include <algorithm>
#include <bit>

#include "hearth/kernels/attention/attention_bf16_prefill_plan_sm90.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {

inline Result<int> multiprocessors() {
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  return device->multiprocessors;
}

template <class... Params, class... Args>
Status launch_with_shared(Launch how, int shared_bytes, void (*kernel)(Params...), Args&&... args) {
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  how.shared_bytes = shared_bytes;
  how.pdl = true;
  return launch(how, kernel, std::forward<Args>(args)...);
}

inline int log2_of(int64_t x) { return static_cast<int>(std::bit_width(static_cast<uint64_t>(x))) - 1; }

// Of a prefill kernel: no more than there are tiles.
inline unsigned prefill_blocks(const StepBatch& batch, const Bf16AttentionParams& p, int most) {
  int64_t items = 0;
  for (int64_t s = 0; s < batch.num_sequences(); ++s)
    items += int64_t{p.kv_heads} * prefill_tiles(static_cast<int>(batch.query_len(s)), p.group);
  return static_cast<unsigned>(std::min<int64_t>(items, most));
}

// Those of a call that takes_attention_bf16() or takes_attention_coded(), without scratch and tensor map.
inline Bf16AttentionParams bf16_attention_params(const AttentionArgs& args, const DeviceStep& step,
                                                 const ExecContext& exec) {
  const KvLayout& layout = args.kv.layout;
  const int64_t layer_units = args.layer * layout.layer_stride_bytes / kKvUnitBytes;
  return {.q = static_cast<const __nv_bfloat16*>(args.q.data),
          .out = static_cast<__nv_bfloat16*>(args.out.data),
          .q_stride = args.q.row_stride,
          .out_stride = args.out.row_stride,
          .step = step,
          .key_units = static_cast<int>(layer_units),
          .value_units = static_cast<int>(layer_units + layout.v_offset_bytes / kKvUnitBytes),
          .head_units = static_cast<int>(layout.head_stride_bytes / kKvUnitBytes),
          .block_shift = log2_of(layout.block_tokens),
          .box_shift = 0,
          .partials = nullptr,
          .partial_floats = 0,
          .slots = 0,
          .counter = exec.staged.counters,
          .heads = static_cast<int>(args.heads),
          .kv_heads = static_cast<int>(layout.kv_heads),
          .group = static_cast<int>(args.heads / layout.kv_heads),
          .window = static_cast<int>(args.window),
          .scale_log2 = args.scale * 1.44269504088896340736f};
}

}  // namespace hearth::sm90
