// SPDX-License-Identifier: Apache-2.0
// How one head's key or value of one token becomes the bytes of a KV format and numbers again: the formats' definition
// as code, which every backend's cache agrees with (docs/formats/kv.md). Pure functions: equal inputs give equal bytes.
#pragma once

#include <cstddef>
#include <span>

#include "hearth/tensor/kv_layout.h"

namespace hearth {

// Stores x [head_dim] at `codes` (token_stride_bytes) and `scales` (scale_bytes; unused where the format has none).
// K comes with its transform applied: multiplied by the channel scale, or rotated. `scale`: kFp8's, else unused.
// A NaN or infinity in x makes every number of the head read back as NaN in the 4-bit formats, itself alone in the others.
// REQUIRES: KvLayout::make takes format and x.size().
void store_kv_head(KvFormatId format, std::span<const float> x, float scale, std::byte* codes, std::byte* scales);

// The stored numbers, as attention sees them.
void load_kv_head(KvFormatId format, const std::byte* codes, const std::byte* scales, float scale, std::span<float> x);

// 4-bit formats: a code q, 0 to 15, stands for step * q + base. Exact in f32 but for kInt4Saw, where it is rounded once
// or twice.
struct KvSteps {
  float step = 0, base = 0;
};
KvSteps load_kv_steps(KvFormatId format, const std::byte* scales);

}  // namespace hearth
