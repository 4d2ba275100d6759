// SPDX-License-Identifier: Apache-2.0
// Which attention calls the tensor-core kernels take. Host code; no state.
#include <bit>
#include <cstdint>

#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/attention/attention_coded_sm90.h"

namespace hearth {
namespace {

// What the KV format does not decide.
bool takes_shape(const AttentionArgs& args) {
  const KvLayout& layout = args.kv.layout;
  if (args.q.dtype != DType::kBf16) return false;
  if (layout.head_dim != 64 && layout.head_dim != 128) return false;
  if (args.heads / layout.kv_heads > sm90::kBf16MaxGroup || args.batch->num_sequences() > sm90::kBf16MaxSequences)
    return false;
  if (layout.block_tokens < 8 || !std::has_single_bit(static_cast<uint64_t>(layout.block_tokens))) return false;
  if (!(args.scale > 0)) return false;
  for (const int64_t stride : {layout.head_stride_bytes, layout.v_offset_bytes, layout.layer_stride_bytes})
    if (stride % sm90::kKvUnitBytes != 0) return false;
  if (layout.token_stride_bytes % 16 != 0) return false;
  // Rows of q and out are moved in vectors of 16 bytes; a row of one token alone has no stride that matters.
  const auto vectors = [](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
  };
  return vectors(args.kv.base, 0) && vectors(args.q.data, args.q.row_stride) &&
         vectors(args.out.data, args.out.row_stride);
}

}  // namespace

bool sm90::takes_attention_bf16(const AttentionArgs& args) {
  return args.kv.layout.format == KvFormatId::kBf16 && takes_shape(args);
}

bool sm90::takes_attention_coded(const AttentionArgs& args) {
  const KvLayout& layout = args.kv.layout;
  if (layout.format == KvFormatId::kF32 || layout.format == KvFormatId::kBf16 || !takes_shape(args)) return false;
  const bool rotated = layout.query_transform == QueryTransform::kHadamard;
  if (rotated != (layout.format == KvFormatId::kInt4Saw)) return false;
  // Steps of a token are loaded at once.
  return layout.scale_bytes == 0 || (layout.scale_offset_bytes % layout.scale_bytes == 0 &&
                                     layout.scale_token_stride_bytes % layout.scale_bytes == 0 &&
                                     layout.scale_head_stride_bytes % layout.scale_bytes == 0);
}

}  // namespace hearth
