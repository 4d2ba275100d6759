// SPDX-License-Identifier: Apache-2.0
// Checks that every op's validate() shares. Messages name the op, the tensor, what was found and what was
// wanted. Host code; nothing here looks at tensor contents.
#pragma once

#include <string_view>

#include "hearth/base/result.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/shape.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

// A 2-d view of `rows` x `cols` with a legal row stride, and data unless it is empty.
Status check_matrix(std::string_view op, std::string_view name, const ConstTensorView& view, int64_t rows,
                    int64_t cols);
// A dense vector of `size` elements, with data.
Status check_vector(std::string_view op, std::string_view name, const ConstTensorView& view, int64_t size);
// f32 or bf16.
Status check_float(std::string_view op, std::string_view name, const ConstTensorView& view);
// The dtype of `view` is that of `other`.
Status check_same_dtype(std::string_view op, std::string_view name, const ConstTensorView& view,
                        std::string_view other_name, const ConstTensorView& other);
// The layer exists in the pool, and the batch is consistent: query_start ascends from 0 to `tokens`, and
// every sequence's context covers its queries and fits into its block table.
Status check_kv_batch(std::string_view op, const KvView& kv, int64_t layer, const StepBatch* batch, int64_t tokens);

// The scales beside a KV pool, each of them optional.
struct KvScales {
  ConstTensorView channel;              // [kv_heads, head_dim]
  ConstTensorView k, v;                 // [1] or [kv_heads]
  ConstTensorView channel_offset = {};  // [kv_heads, head_dim]; for who writes keys

  // Of one kv head: kFp8's scale, 1 where there is none.
  float key_scale(int64_t head) const { return at(k, head); }
  float value_scale(int64_t head) const { return at(v, head); }
  // kInt4Fireq's row of a head; nullptr where there is none.
  const float* channel_row(int64_t head) const { return channel ? channel.row<float>(head) : nullptr; }
  const float* offset_row(int64_t head) const { return channel_offset ? channel_offset.row<float>(head) : nullptr; }

 private:
  static float at(const ConstTensorView& scale, int64_t head) {
    return scale ? scale.row<float>(0)[scale.cols() == 1 ? 0 : head] : 1.0f;
  }
};
// Those of `scales` that the layout's format uses, checked; the others empty.
Result<KvScales> check_kv_scales(std::string_view op, const KvLayout& layout, const KvScales& scales);

}  // namespace hearth
