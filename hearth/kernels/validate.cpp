// SPDX-License-Identifier: Apache-2.0
// The shared checks of validate.h.
#include "hearth/kernels/validate.h"

#include "hearth/kernels/rounded_rows.h"

namespace hearth {

Status check_matrix(std::string_view op, std::string_view name, const ConstTensorView& view, int64_t rows,
                    int64_t cols) {
  if (view.shape != Shape{rows, cols})
    return invalid_argument("{}: {} is {}, wanted [{}, {}]", op, name, to_string(view.shape), rows, cols);
  if (view.row_stride < cols)
    return invalid_argument("{}: {} has row stride {}, wanted at least its {} columns", op, name, view.row_stride,
                            cols);
  if (view.data == nullptr && rows > 0 && cols > 0) return invalid_argument("{}: {} has no data", op, name);
  return {};
}

Status check_vector(std::string_view op, std::string_view name, const ConstTensorView& view, int64_t size) {
  if (view.shape != Shape{size})
    return invalid_argument("{}: {} is {}, wanted [{}]", op, name, to_string(view.shape), size);
  if (view.data == nullptr && size > 0) return invalid_argument("{}: {} has no data", op, name);
  return {};
}

Status check_float(std::string_view op, std::string_view name, const ConstTensorView& view) {
  if (view.dtype != DType::kF32 && view.dtype != DType::kBf16)
    return invalid_argument("{}: {} is {}, wanted f32 or bf16", op, name, dtype_name(view.dtype));
  return {};
}

Status check_same_dtype(std::string_view op, std::string_view name, const ConstTensorView& view,
                        std::string_view other_name, const ConstTensorView& other) {
  if (view.dtype != other.dtype)
    return invalid_argument("{}: {} is {}, wanted {} as {}", op, name, dtype_name(view.dtype), dtype_name(other.dtype),
                            other_name);
  return {};
}

Status check_rounded(std::string_view op, const RoundedRows& rounded, int64_t rows, int64_t cols) {
  const auto check_type = [&](std::string_view name, const ConstTensorView& view, DType wanted) -> Status {
    if (view.dtype == wanted) return {};
    return invalid_argument("{}: {} is {}, wanted {}", op, name, dtype_name(view.dtype), dtype_name(wanted));
  };
  HEARTH_TRY(check_type("codes", rounded.codes, DType::kE4m3));
  HEARTH_TRY(check_matrix(op, "codes", rounded.codes, rows, cols));
  HEARTH_TRY(check_type("scales", rounded.scales, DType::kF32));
  HEARTH_TRY(check_vector(op, "scales", rounded.scales, rows));
  if (!rounded.static_scale) return {};
  HEARTH_TRY(check_type("static_scale", rounded.static_scale, DType::kF32));
  return check_vector(op, "static_scale", rounded.static_scale, 1);
}

Status check_kv_batch(std::string_view op, const KvView& kv, int64_t layer, const StepBatch* batch, int64_t tokens) {
  if (batch == nullptr) return invalid_argument("{}: no batch", op);
  if (layer < 0 || layer >= kv.layout.layers)
    return invalid_argument("{}: layer {}, the KV pool has {}", op, layer, kv.layout.layers);
  const int64_t sequences = batch->num_sequences();
  if (static_cast<int64_t>(batch->query_start.size()) != sequences + 1)
    return invalid_argument("{}: query_start has {} entries, wanted {} for {} sequences", op, batch->query_start.size(),
                            sequences + 1, sequences);
  if (batch->query_start[0] != 0 || batch->query_start[sequences] != tokens)
    return invalid_argument("{}: query_start runs from {} to {}, wanted 0 to {} tokens", op, batch->query_start[0],
                            batch->query_start[sequences], tokens);
  if (batch->block_table_stride < 0 ||
      static_cast<int64_t>(batch->block_table.size()) < sequences * batch->block_table_stride)
    return invalid_argument("{}: the block table has {} entries, wanted {} sequences of {}", op,
                            batch->block_table.size(), sequences, batch->block_table_stride);
  const int64_t room = batch->block_table_stride * kv.layout.block_tokens;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t context = batch->context_len[s], queries = batch->query_len(s);
    if (queries < 0 || queries > context)
      return invalid_argument("{}: sequence {} has {} query tokens in a context of {}", op, s, queries, context);
    if (context > room)
      return invalid_argument("{}: sequence {} has a context of {} tokens, its block table holds {}", op, s, context,
                              room);
  }
  if (kv.base == nullptr && tokens > 0) return invalid_argument("{}: the KV pool has no memory", op);
  return {};
}

Result<KvScales> check_kv_scales(std::string_view op, const KvLayout& layout, const KvScales& scales) {
  KvScales used;
  const auto check_f32 = [&](std::string_view name, const ConstTensorView& view) -> Status {
    if (view.dtype == DType::kF32) return {};
    return invalid_argument("{}: {} is {}, wanted f32", op, name, dtype_name(view.dtype));
  };
  const auto take = [&](std::string_view name, const ConstTensorView& from, ConstTensorView& to) -> Status {
    if (!from) return {};
    if (from.shape != Shape{1}) {
      HEARTH_TRY(check_vector(op, name, from, layout.kv_heads));
    }
    to = from;
    return check_f32(name, from);
  };
  if (layout.format == KvFormatId::kFp8) {
    HEARTH_TRY(take("k_scale", scales.k, used.k));
    HEARTH_TRY(take("v_scale", scales.v, used.v));
  }
  const auto take_channels = [&](std::string_view name, const ConstTensorView& from, ConstTensorView& to) -> Status {
    if (layout.query_transform != QueryTransform::kChannelScale || !from) return {};
    HEARTH_TRY(check_matrix(op, name, from, layout.kv_heads, layout.head_dim));
    to = from;
    return check_f32(name, from);
  };
  HEARTH_TRY(take_channels("k_channel_scale", scales.channel, used.channel));
  HEARTH_TRY(take_channels("k_channel_offset", scales.channel_offset, used.channel_offset));
  return used;
}

}  // namespace hearth
