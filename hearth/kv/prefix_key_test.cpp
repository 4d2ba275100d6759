// SPDX-License-Identifier: Apache-2.0
#include "hearth/kv/prefix_key.h"

#include <gtest/gtest.h>

#include <fmt/format.h>
#include <string>
#include <vector>

namespace hearth {
namespace {

std::string hex(const PrefixKey& key) {
  std::string text;
  for (const uint64_t word : key)
    for (int i = 0; i < 8; ++i) text += fmt::format("{:02X}", word >> (8 * i) & 0xff);
  return text;
}

// By `openssl mac -macopt size:16 -macopt hexkey:000102...0F SipHash` of the bytes 0, 1, 2, ...; OpenSSL 3.0.19.
TEST(SipHash, AgreesWithOpenssl) {
  const std::array<uint64_t, 2> secret = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  std::vector<std::byte> data;
  for (int i = 0; i < 24; ++i) data.push_back(static_cast<std::byte>(i));
  const std::pair<size_t, const char*> known[] = {
      {0, "A3817F04BA25A8E66DF67214C7550293"},  {1, "DA87C1D86B99AF44347659119B22FC45"},
      {8, "3B62A9BA6258F5610F83E264F31497B4"},  {15, "5493E99933B0A8117E08EC0F97CFC3D9"},
      {16, "6EE2A4CA67B054BBFD3315BF85230577"}, {24, "2DB479AE78BD50D8882A8A178A6132AD"}};
  for (const auto& [bytes, mac] : known) EXPECT_EQ(hex(siphash128(secret, {}, std::span(data).first(bytes))), mac);
  // Words in front are the bytes that they consist of.
  const std::array<uint64_t, 2> words = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  EXPECT_EQ(hex(siphash128(secret, words, std::span(data).subspan(16))), known[5].second);
}

TEST(PrefixChain, KeysNameModelSaltAndAllTokensBefore) {
  const std::array<uint64_t, 2> secret = {1, 2};
  const std::vector<int32_t> a = {1, 2, 3, 4}, b = {1, 2, 3, 5};
  const auto keys = [&](PrefixChain chain, const auto&... blocks) {
    PrefixKey last{};
    ((last = chain.next(blocks)), ...);
    return last;
  };
  const PrefixKey ab = keys({secret, 7, ""}, a, b);
  EXPECT_EQ(ab, keys({secret, 7, ""}, a, b));
  EXPECT_NE(ab, keys({secret, 7, ""}, b, b));
  EXPECT_NE(ab, keys({secret, 7, ""}, b));
  EXPECT_NE(ab, keys({secret, 7, ""}, b, a));
  EXPECT_NE(ab, keys({secret, 8, ""}, a, b));
  EXPECT_NE(ab, keys({secret, 7, "a"}, a, b));
  EXPECT_NE(ab, keys({{1, 3}, 7, ""}, a, b));
}

}  // namespace
}  // namespace hearth
