// SPDX-License-Identifier: Apache-2.0
// Which attention calls the tensor-core kernels take. Host code; no state.
#include <bit>
#include <cstdint>

#include "hearth/kernels/attention/attention_bf16_sm90.h"

namespace hearth {

bool sm90::takes_attention_bf16(const AttentionArgs& args) {
  const KvLayout& layout = args.kv.layout;
  if (args.q.dtype != DType::kBf16 || layout.format != KvFormatId::kBf16) return false;
  if (layout.head_dim != 64 && layout.head_dim != 128) return false;
  if (args.heads / layout.kv_heads > kBf16MaxGroup || args.batch->num_sequences() > kBf16MaxSequences) return false;
  if (layout.block_tokens < 8 || !std::has_single_bit(static_cast<uint64_t>(layout.block_tokens))) return false;
  if (!(args.scale > 0)) return false;
  for (const int64_t stride : {layout.head_stride_bytes, layout.v_offset_bytes, layout.layer_stride_bytes})
    if (stride % kKvUnitBytes != 0) return false;
  if (layout.token_stride_bytes % 16 != 0) return false;
  // Rows of q and out are moved in vectors of 16 bytes; a row of one token alone has no stride that matters.
  const auto vectors = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
  };
  return vectors(args.kv.base, 0) && vectors(args.q.data, args.q.row_stride) &&
         vectors(args.out.data, args.out.row_stride);
}

}  // namespace hearth
