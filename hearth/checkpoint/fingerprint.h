// SPDX-License-Identifier: Apache-2.0
// Fingerprints: what tells whether something on disk, a score or a half-done run, belongs to the model and text at
// hand. A change of one 8-byte word always changes the fingerprint; other accidents go unseen once in 2^64. No defence
// against who wants two things to look the same. One owner.
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

class Fingerprint {
 public:
  // Length and bytes: ("a", "b") and ("ab", "") differ.
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  void add(int64_t number) { add_word(static_cast<uint64_t>(number)); }
  // 16 hexadecimal digits of all that was added.
  std::string text() const;

 private:
  void add_word(uint64_t word);
  uint64_t state_ = 0x9E3779B97F4A7C15;
};

// Of everything that decides what a model computes: configuration, and every tensor's name, type, shape and
// bytes. Reads all weights, tensors spread over the pool. Errors are Checkpoint::read's.
Result<std::string> checkpoint_fingerprint(const Checkpoint& checkpoint, ThreadPool& pool);

}  // namespace hearth
