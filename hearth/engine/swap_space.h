// SPDX-License-Identifier: Apache-2.0
// SwapSpace: the host memory of SwapBooks. The books are the planner's, the bytes are those of whoever carries the copies
// out.
#pragma once

#include <cstdint>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/memory/memory.h"
#include "hearth/schedule/swap_books.h"

namespace hearth {

class SwapSpace : public SwapBooks {
 public:
  // No bytes: nothing fits.
  SwapSpace() = default;
  // `size_bytes` of staging memory beside `kv`, whose copies there and back are timed.
  static Result<SwapSpace> create(const Memory& memory, Queue& queue, const Buffer& kv, int64_t size_bytes,
                                  const Clock& clock);

  std::byte* data() const { return memory_.data(); }

 private:
  SwapSpace(Buffer memory, double us_per_byte)
      : SwapBooks(memory.size_bytes(), us_per_byte), memory_(std::move(memory)) {}
  Buffer memory_;
};

}  // namespace hearth
