// SPDX-License-Identifier: Apache-2.0
// Tells the inputs of two runs apart: a run goes on only with what it began with. Against mistakes, not against malice.
// One owner; add_weights() uses the threads of the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/checkpoint/checkpoint.h"

namespace hearth {

// FNV-1a's multiplication, 8 bytes at a time, and a shift that brings high bits down.
//   I1. Each step can be undone: where one word differs, the result does.
class InputHash {
 public:
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  void add(uint64_t word) {
    hash_ = (hash_ ^ word) * 0x100000001b3;
    hash_ ^= hash_ >> 32;
  }
  uint64_t value() const { return hash_; }
  std::string text() const;

 private:
  uint64_t hash_ = 0xcbf29ce484222325;
};

// Names, types, shapes and every byte of the checkpoint's tensors; for any number of threads the same. Errors are those
// of reading.
Status add_weights(const Checkpoint& checkpoint, ThreadPool& pool, InputHash& to);

}  // namespace hearth
