// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/prefix_key.h"

#include <bit>
#include <cstring>

namespace hearth {
namespace {

struct State {
  uint64_t v0, v1, v2, v3;

  void rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1, v1 = std::rotl(v1, 13) ^ v0, v0 = std::rotl(v0, 32);
      v2 += v3, v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3, v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1, v1 = std::rotl(v1, 17) ^ v2, v2 = std::rotl(v2, 32);
    }
  }
  void absorb(uint64_t word) {
    v3 ^= word;
    rounds(2);
    v0 ^= word;
  }
  uint64_t finish() {
    rounds(4);
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

}  // namespace

PrefixKey siphash128(const std::array<uint64_t, 2>& secret, std::span<const uint64_t> words,
                     std::span<const std::byte> data) {
  State state{.v0 = secret[0] ^ 0x736f6d6570736575,
              .v1 = secret[1] ^ 0x646f72616e646f6d ^ 0xee,
              .v2 = secret[0] ^ 0x6c7967656e657261,
              .v3 = secret[1] ^ 0x7465646279746573};
  for (const uint64_t word : words) state.absorb(word);
  const size_t whole = data.size() / 8 * 8;
  for (size_t at = 0; at < whole; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data.data() + at, 8);
    state.absorb(word);
  }
  uint64_t last = 0;
  if (data.size() > whole) std::memcpy(&last, data.data() + whole, data.size() - whole);
  state.absorb(last | (words.size() * 8 + data.size()) << 56);
  state.v2 ^= 0xee;
  PrefixKey key{};
  key[0] = state.finish();
  state.v1 ^= 0xdd;
  key[1] = state.finish();
  return key;
}

PrefixChain::PrefixChain(const std::array<uint64_t, 2>& secret, uint64_t model, std::string_view salt)
    : secret_(secret) {
  last_ = siphash128(secret, std::array{model}, std::as_bytes(std::span(salt)));
}

PrefixKey PrefixChain::next(std::span<const int32_t> block_tokens) {
  last_ = siphash128(secret_, last_, std::as_bytes(block_tokens));
  return last_;
}

}  // namespace hearth
