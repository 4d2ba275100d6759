// SPDX-License-Identifier: Apache-2.0
// The KV formats that the CPU ops and the references implement: f32 and bf16.
#pragma once

#include <string_view>

#include "hearth/base/result.h"
#include "hearth/tensor/kv_layout.h"

namespace hearth::cpu {

// Unsupported, naming op and format, unless the cache stores plain f32 or bf16.
inline Status require_plain_kv(std::string_view op, const KvLayout& layout) {
  if (layout.format != KvFormatId::kF32 && layout.format != KvFormatId::kBf16)
    return unsupported("{}: KV format {} has no CPU implementation, f32 and bf16 have", op,
                       kv_format_name(layout.format));
  return {};
}

}  // namespace hearth::cpu
