// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/file.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "hearth/checkpoint/quote.h"
#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing_util::TempFolder;

TEST(ReadFully, GoesOnAfterShortReadsAndInterrupts) {
  const std::string source = "0123456789";
  std::array<std::byte, 7> dst{};
  int calls = 0;
  const auto outcome = detail::read_fully(dst, 2, [&](std::span<std::byte> part, int64_t offset) -> ssize_t {
    if (++calls % 2 == 0) {
      errno = EINTR;
      return -1;
    }
    const size_t size = std::min<size_t>(part.size(), 3);
    std::memcpy(part.data(), source.data() + offset, size);
    return static_cast<ssize_t>(size);
  });
  EXPECT_EQ(outcome.error_number, 0);
  EXPECT_EQ(outcome.bytes, 7);
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(dst.data()), 7), "2345678");
  EXPECT_EQ(calls, 5);
}

TEST(ReadFully, StopsAtTheEndAndAtErrors) {
  std::array<std::byte, 8> dst{};
  const auto ended = detail::read_fully(
      dst, 0, [&](std::span<std::byte>, int64_t offset) -> ssize_t { return offset < 5 ? 5 - offset : 0; });
  EXPECT_EQ(ended.bytes, 5);
  EXPECT_EQ(ended.error_number, 0);
  const auto failed = detail::read_fully(dst, 0, [&](std::span<std::byte>, int64_t offset) -> ssize_t {
    if (offset == 0) return 4;
    errno = EIO;
    return -1;
  });
  EXPECT_EQ(failed.bytes, 4);
  EXPECT_EQ(failed.error_number, EIO);
}

TEST(File, ReadsAtOffsetsAndSaysWhereItEnds) {
  const TempFolder dir;
  const auto file = File::open(dir.put("text", "0123456789"));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->size_bytes(), 10);
  std::array<std::byte, 4> dst{};
  ASSERT_TRUE(file->read_at(6, dst));
  EXPECT_EQ(std::to_integer<char>(dst[3]), '9');
  EXPECT_ERROR(file->read_at(7, dst), kCorrupt, "text: ends at byte 10, wanted bytes up to 11");
}

TEST(File, NamesWhatItCannotOpen) {
  const TempFolder dir;
  EXPECT_ERROR(File::open(dir.path() / "absent"), kNotFound, "cannot open", "absent", "No such file");
  EXPECT_ERROR(File::open(dir.put("file", "x") / "below"), kNotFound, "file/below");
  EXPECT_ERROR(read_text_file(dir.put("big", "12345"), 4), kResourceExhausted, "big has 5 bytes; at most 4");
}

TEST(QuoteName, EscapesAndCutsBetweenCharacters) {
  EXPECT_EQ(quote_name("plain \xC3\xA9"), "'plain \xC3\xA9'");
  EXPECT_EQ(quote_name(std::string_view("a\0\x7F\x1B", 4)), "'a\\x00\\x7f\\x1b'");
  std::string name(119, 'x');
  name += "\xE2\x82\xAC\xE2\x82\xAC";  // two euro signs, the first across the limit
  EXPECT_EQ(quote_name(name), fmt::format("'{}\xE2\x82\xAC'... (125 bytes)", name.substr(0, 119)));
}

}  // namespace
}  // namespace hearth
