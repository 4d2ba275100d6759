// SPDX-License-Identifier: Apache-2.0
// The arrays of a step and the places of the KV cache, as kernels see them (step_batch.h, kv_layout.h). A host part
// gathers the device pointers; a device part finds a token's sequence.
#pragma once

#include <cstdint>

#include "hearth/kernels/exec.h"
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

// Where the keys and values of one layer lie: base + block offset + slot and head strides.
struct DeviceKv {
  std::byte* key;    // base of the pool, at the layer
  std::byte* value;  // the same, at its values
  int64_t token_stride_bytes, head_stride_bytes;
  int block_tokens;
};

inline DeviceKv device_kv(const KvView& kv, int64_t layer) {
  return {kv.key(0, layer), kv.value(0, layer), kv.layout.token_stride_bytes, kv.layout.head_stride_bytes,
          static_cast<int>(kv.layout.block_tokens)};
}

#ifdef __CUDACC__
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

// Offset of a position's slot within DeviceKv::key or value, head 0.
__device__ __forceinline__ int64_t slot_offset(const DeviceStep& step, const DeviceKv& kv, int sequence, int position) {
  return step.block_table[sequence * step.block_table_stride + position / kv.block_tokens] +
         position % kv.block_tokens * kv.token_stride_bytes;
}
#endif

}  // namespace hearth::sm90
