// SPDX-License-Identifier: Apache-2.0
// The arrays of a step and the places of the KV cache, as kernels see them (step_batch.h, kv_layout.h). A host part
// gathers the device pointers; a device part finds a token's sequence.
#pragma once

#include <cstdint>

#include "hearth/kernels/exec.h"
#include "hearth/kernels/validate.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/step_batch.h"

namespace hearth::sm90 {

struct DeviceStep {
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* context_len;  // [sequences]
  const int64_t* block_table;  // [sequences, block_table_stride]
  int64_t block_table_stride;
  int sequences;
};

inline Result<DeviceStep> device_step(std::string_view op, const StepBatch& batch, const ExecContext& exec) {
  DeviceStep step{.block_table_stride = batch.block_table_stride, .sequences = static_cast<int>(batch.num_sequences())};
  HEARTH_TRY_ASSIGN(step.query_start, on_device(op, "query_start", batch.query_start, exec));
  HEARTH_TRY_ASSIGN(step.context_len, on_device(op, "context_len", batch.context_len, exec));
  HEARTH_TRY_ASSIGN(step.block_table, on_device(op, "block_table", batch.block_table, exec));
  return step;
}

// What a stored 1 stands for, of one head (validate.h); 1 where there is no array.
struct DeviceHeadScale {
  const float* at;  // [1] or [kv_heads], or null
  bool per_head;
#ifdef __CUDACC__
  __device__ __forceinline__ float operator[](int head) const { return at == nullptr ? 1.0f : at[per_head ? head : 0]; }
#endif
};

// Where the keys and values of one layer lie: base + block offset + slot and head strides, for codes and for scale
// parameters; and the scales of the checkpoint.
struct DeviceKv {
  std::byte* key;    // base of the pool, at the layer
  std::byte* value;  // the same, at its values
  int64_t token_stride_bytes, head_stride_bytes;
  int64_t scale_offset_bytes, scale_token_stride_bytes, scale_head_stride_bytes;
  int block_tokens;
  bool has_base;  // the scale parameters are step and base, not step alone
  DeviceHeadScale k_scale, v_scale;
  const float* channel_scale;  // [kv_heads, channel_stride], or null
  int64_t channel_stride;
  const float* channel_offset;  // [kv_heads, channel_offset_stride], or null
  int64_t channel_offset_stride;
};

// `scales` are those that check_kv_scales() returned, in device memory.
inline DeviceKv device_kv(const KvView& kv, int64_t layer, const KvScales& scales) {
  const KvLayout& layout = kv.layout;
  const auto head_scale = [](const ConstTensorView& view) -> DeviceHeadScale {
    return {static_cast<const float*>(view.data), view && view.cols() > 1};
  };
  return {.key = kv.key(0, layer),
          .value = kv.value(0, layer),
          .token_stride_bytes = layout.token_stride_bytes,
          .head_stride_bytes = layout.head_stride_bytes,
          .scale_offset_bytes = layout.scale_offset_bytes,
          .scale_token_stride_bytes = layout.scale_token_stride_bytes,
          .scale_head_stride_bytes = layout.scale_head_stride_bytes,
          .block_tokens = static_cast<int>(layout.block_tokens),
          .has_base = layout.format == KvFormatId::kInt4Saw,
          .k_scale = head_scale(scales.k),
          .v_scale = head_scale(scales.v),
          .channel_scale = static_cast<const float*>(scales.channel.data),
          .channel_stride = scales.channel.row_stride,
          .channel_offset = static_cast<const float*>(scales.channel_offset.data),
          .channel_offset_stride = scales.channel_offset.row_stride};
}

#ifdef __CUDACC__
// A number of a step's arrays, past L1. Ahead of pdl_wait(): nothing promises before it that L1 has forgotten what lay
// there in the step before.
template <class T>
__device__ __forceinline__ T past_l1(const T* at) {
  return __ldcg(at);
}

struct TokenPlace {
  int sequence;
  int position;
};

// The last sequence that begins at or before the token: empty ones lie before it.
__device__ __forceinline__ TokenPlace find_token(const DeviceStep& step, int token) {
  int low = 0, high = step.sequences;  // query_start[low] <= token < query_start[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (step.query_start[middle] <= token ? low : high) = middle;
  }
  return {low, step.context_len[low] - step.query_start[low + 1] + token};
}

// Offsets within DeviceKv::key or value.
struct HeadPlace {
  int64_t codes, steps;
};

__device__ __forceinline__ HeadPlace find_head(const DeviceStep& step, const DeviceKv& kv, TokenPlace place, int head) {
  const int64_t block = step.block_table[place.sequence * step.block_table_stride + place.position / kv.block_tokens];
  const int slot = place.position % kv.block_tokens;
  return {block + slot * kv.token_stride_bytes + head * kv.head_stride_bytes,
          block + kv.scale_offset_bytes + slot * kv.scale_token_stride_bytes + head * kv.scale_head_stride_bytes};
}
#endif

}  // namespace hearth::sm90
