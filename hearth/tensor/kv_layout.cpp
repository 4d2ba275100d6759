// SPDX-License-Identifier: Apache-2.0
#include "hearth/tensor/kv_layout.h"

namespace hearth {
namespace {

struct KvFormatInfo {
  KvFormatId id;
  std::string_view name;
  int64_t element_bits;
  int64_t scale_bytes;  // per token and head
  QueryTransform query_transform;
};

constexpr KvFormatInfo kInfos[] = {
    {KvFormatId::kF32, "f32", 32, 0, QueryTransform::kNone},
    {KvFormatId::kBf16, "bf16", 16, 0, QueryTransform::kNone},
    {KvFormatId::kFp8, "fp8", 8, 0, QueryTransform::kNone},
    {KvFormatId::kInt4, "int4", 4, 2, QueryTransform::kNone},
    {KvFormatId::kInt4Fireq, "int4-fireq", 4, 2, QueryTransform::kChannelScale},
    {KvFormatId::kInt4Saw, "int4-saw", 4, 4, QueryTransform::kHadamard},
};

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

std::string_view kv_format_name(KvFormatId id) { return kInfos[static_cast<int>(id)].name; }

std::optional<KvFormatId> kv_format_from_name(std::string_view name) {
  for (const KvFormatInfo& info : kInfos)
    if (info.name == name) return info.id;
  return std::nullopt;
}

Result<KvLayout> KvLayout::make(KvFormatId format, int64_t layers, int64_t kv_heads, int64_t head_dim,
                                int64_t block_tokens) {
  if (layers < 1 || kv_heads < 1 || head_dim < 1 || block_tokens < 1)
    return invalid_argument(
        "KV layout of {} layers, {} kv heads, head dim {}, blocks of {} tokens: all must be at least 1", layers,
        kv_heads, head_dim, block_tokens);
  const KvFormatInfo& info = kInfos[static_cast<int>(format)];
  if (info.element_bits < 16 && head_dim > KvLayout::kMaxCodedHeadDim)
    return invalid_argument("KV format {}: head dim {} is above {}", info.name, head_dim, KvLayout::kMaxCodedHeadDim);
  if (head_dim * info.element_bits % 8 != 0)
    return invalid_argument("KV format {}: head dim {} does not fill whole bytes", info.name, head_dim);
  if (info.query_transform == QueryTransform::kHadamard && (head_dim & (head_dim - 1)) != 0)
    return invalid_argument("KV format {}: head dim {} is not a power of two", info.name, head_dim);

  KvLayout layout;
  layout.format = format;
  layout.query_transform = info.query_transform;
  layout.layers = layers;
  layout.kv_heads = kv_heads;
  layout.head_dim = head_dim;
  layout.block_tokens = block_tokens;
  layout.token_stride_bytes = head_dim * info.element_bits / 8;
  layout.head_stride_bytes = align64(block_tokens * layout.token_stride_bytes);
  layout.scale_bytes = info.scale_bytes;
  layout.scale_offset_bytes = kv_heads * layout.head_stride_bytes;
  layout.scale_token_stride_bytes = info.scale_bytes;
  layout.scale_head_stride_bytes = block_tokens * info.scale_bytes;
  layout.v_offset_bytes = layout.scale_offset_bytes + align64(kv_heads * layout.scale_head_stride_bytes);
  layout.layer_stride_bytes = 2 * layout.v_offset_bytes;
  return layout;
}

}  // namespace hearth
