// SPDX-License-Identifier: Apache-2.0
// SwapBooks: host memory of a fixed size where the KV of sequences lies that gave up their blocks, each in one piece; and
// whether it is worth the copies. The books alone: the engine's SwapSpace has the bytes, the simulator has none.
//   I1. Pieces do not overlap and lie within the memory.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "hearth/base/check.h"
#include "hearth/schedule/cost_model.h"

namespace hearth {

class SwapBooks {
 public:
  // No bytes: nothing fits.
  SwapBooks() = default;
  // us_per_byte: of a copy there and one back.
  SwapBooks(int64_t size_bytes, double us_per_byte) : size_bytes_(size_bytes), us_per_byte_(us_per_byte) {}

  int64_t size_bytes() const { return size_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }
  // For a copy there and one back.
  double round_trip_us(int64_t bytes) const { return us_per_byte_ * static_cast<double>(bytes); }

  // A piece for the KV of `tokens` tokens that a sequence gives up, if copying it takes less time than computing it
  // again, alone in a step that takes place anyway. nullopt: it does not, nothing is known of such steps, or there is
  // no room.
  std::optional<int64_t> take_if_cheaper(const StepCost& cost, int64_t tokens, int64_t bytes) {
    const auto count = static_cast<double>(tokens);
    const double again_us = cost.us({.prefill_tokens = count, .sequences = 1, .prefill_pairs = count * count / 2});
    if (size_bytes_ == 0 || round_trip_us(bytes) >= again_us) return std::nullopt;
    return take(bytes);
  }

  // The offset of a piece, the first that is large enough; nullopt: there is none.
  std::optional<int64_t> take(int64_t bytes) {
    int64_t at = 0;
    for (const auto& [begin, size] : pieces_) {
      if (begin - at >= bytes) break;
      at = begin + size;
    }
    if (bytes < 1 || size_bytes_ - at < bytes) return std::nullopt;
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
  int64_t size_bytes_ = 0;
  double us_per_byte_ = 0;
  std::map<int64_t, int64_t> pieces_;  // offset -> bytes
  int64_t used_bytes_ = 0;
};

}  // namespace hearth
