// SPDX-License-Identifier: Apache-2.0
// Names of prefixes. The key of a block is a keyed hash of the key before it and of the block's tokens, so that equal
// keys mean equal tokens from the start on. 128 bits of SipHash-2-4 (Aumasson, Bernstein, "SipHash: a fast
// short-input PRF", INDOCRYPT 2012) under a secret of the process: nobody can make two prefixes meet, or guess by
// times whether another tenant has sent one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace hearth {

using PrefixKey = std::array<uint64_t, 2>;

// SipHash-2-4 with 128 bits of output, of the words (little endian) with the data behind them.
PrefixKey siphash128(const std::array<uint64_t, 2>& secret, std::span<const uint64_t> words,
                     std::span<const std::byte> data);

// The keys of one sequence, block after block.
class PrefixChain {
 public:
  // Sequences share blocks only within (model, salt): the salt is the tenant's.
  PrefixChain(const std::array<uint64_t, 2>& secret, uint64_t model, std::string_view salt);

  // The key of the next block. REQUIRES: all of the block's tokens.
  PrefixKey next(std::span<const int32_t> block_tokens);

 private:
  std::array<uint64_t, 2> secret_;
  PrefixKey last_;
};

}  // namespace hearth
