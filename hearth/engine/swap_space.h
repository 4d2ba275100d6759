// SPDX-License-Identifier: Apache-2.0
// SwapSpace: host memory of a fixed size where the KV of sequences lies that gave up their blocks, each in one piece.
//   I1. Pieces do not overlap and lie within the memory.
// The pieces are the planner's, the bytes are those of whoever carries the copies out.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/memory/memory.h"

namespace hearth {

class SwapSpace {
 public:
  // No bytes: nothing fits.
  SwapSpace() = default;
  // `size_bytes` of staging memory beside `kv`, whose copies there and back are timed.
  static Result<SwapSpace> create(const Memory& memory, Queue& queue, const Buffer& kv, int64_t size_bytes,
                                  const Clock& clock);

  std::byte* data() const { return memory_.data(); }
  int64_t size_bytes() const { return memory_.size_bytes(); }
  int64_t used_bytes() const { return used_bytes_; }
  // For a copy there and one back.
  double round_trip_us(int64_t bytes) const { return us_per_byte_ * static_cast<double>(bytes); }

  // The offset of a piece, the first that is large enough; nullopt: there is none.
  std::optional<int64_t> take(int64_t bytes) {
    int64_t at = 0;
    for (const auto& [begin, size] : pieces_) {
      if (begin - at >= bytes) break;
      at = begin + size;
    }
    if (bytes < 1 || size_bytes() - at < bytes) return std::nullopt;
    pieces_[at] = bytes;
    used_bytes_ += bytes;
    return at;
  }
  void give_back(int64_t at) {
    const auto piece = pieces_.find(at);
    HEARTH_CHECK(piece != pieces_.end(), "no piece of the swap space begins at {}", at);
    used_bytes_ -= piece->second;
    pieces_.erase(piece);
  }

 private:
  Buffer memory_;
  std::map<int64_t, int64_t> pieces_;  // offset -> bytes
  int64_t used_bytes_ = 0;
  double us_per_byte_ = 0;
};

}  // namespace hearth
