// SPDX-License-Identifier: Apache-2.0
// How keys and values lie in memory, for every attention kernel and every pool.
//
// A KV block holds `block_tokens` consecutive tokens of one sequence for all layers. It is addressed by
// a 64-bit byte offset from the pool's base, so that blocks of models of any format may share slabs.
// Inside a block, K of layer l starts at l * layer_stride_bytes and V at that + v_offset_bytes; inside
// one of the two, (token t, kv head h) starts at t * token_stride_bytes + h * head_stride_bytes. Scales,
// where the format has them, lie in the same block. Kernels take these numbers and assume no others:
// there is no [blocks, heads, dim] tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/tensor/dtype.h"

namespace hearth {

enum class KvFormatId : uint8_t {
  kF32,
  kBf16,
  kFp8,        // E4M3, scale per tensor or per head
  kInt4,       // symmetric per token and head: absmax / 7
  kInt4Fireq,  // symmetric per token and head, K scaled per channel after RoPE (and Q inversely)
  kInt4Saw,    // asymmetric per token and head, K (and Q) rotated after RoPE
};

// What attention does to a query vector, after RoPE, before it meets the stored keys.
enum class QueryTransform : uint8_t {
  kNone,
  kChannelScale,  // divide by the vector [kv_heads, head_dim] that K was multiplied by
  kHadamard,      // rotate by a normalised Hadamard matrix of size head_dim
};

// Names as users type them: f32, bf16, fp8, int4, int4-fireq, int4-saw.
std::string_view kv_format_name(KvFormatId id);
std::optional<KvFormatId> kv_format_from_name(std::string_view name);

struct KvLayout {
  // Of the formats that are not plain floats, so that kernels may hold a head on their stack.
  static constexpr int64_t kMaxCodedHeadDim = 1024;

  KvFormatId format = KvFormatId::kF32;
  QueryTransform query_transform = QueryTransform::kNone;
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_tokens = 0;

  // Strides within a block, in bytes.
  int64_t token_stride_bytes = 0;
  int64_t head_stride_bytes = 0;
  int64_t v_offset_bytes = 0;
  int64_t layer_stride_bytes = 0;
  // Where a token's scale parameters lie: (t, h) at scale_offset_bytes + t * scale_token_stride_bytes +
  // h * scale_head_stride_bytes from the start of K or V. scale_bytes = 0: the format has none.
  int64_t scale_bytes = 0;
  int64_t scale_offset_bytes = 0;
  int64_t scale_token_stride_bytes = 0;
  int64_t scale_head_stride_bytes = 0;

  // Bytes of one block, all layers.
  int64_t block_bytes() const { return layers * layer_stride_bytes; }
  // Bytes that one token of context costs.
  int64_t bytes_per_token() const { return block_bytes() / block_tokens; }

  // The layout that hearth uses: per (layer, K or V) kv heads outermost, then tokens, then channels, then
  // the scales; everything 64-byte aligned. InvalidArgument for sizes below 1 or a head_dim that the
  // format cannot store.
  static Result<KvLayout> make(KvFormatId format, int64_t layers, int64_t kv_heads, int64_t head_dim,
                               int64_t block_tokens);
};

// A pool of blocks as kernels see it. Sequences' block tables hold byte offsets from `base`.
struct KvView {
  std::byte* base = nullptr;
  KvLayout layout;
  // Offset of a block that belongs to no sequence: steps that are padded to a fixed number of sequences write there.
  // -1: the pool has none, and no step is padded.
  int64_t dummy_block = -1;

  std::byte* key(int64_t block_offset_bytes, int64_t layer) const {
    return base + block_offset_bytes + layer * layout.layer_stride_bytes;
  }
  std::byte* value(int64_t block_offset_bytes, int64_t layer) const {
    return key(block_offset_bytes, layer) + layout.v_offset_bytes;
  }
};

}  // namespace hearth
