// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace hearth {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

std::string windows_error(std::string_view list, int64_t count) {
  const auto result = parse_windows(list, count);
  return result ? "no error" : result.error().message;
}

TEST(Windows, ListsAndRanges) {
  EXPECT_THAT(*parse_windows("0-3,7", 8), ElementsAre(0, 1, 2, 3, 7));
  EXPECT_THAT(*parse_windows(" 7 , 2-2,\n0", 8), ElementsAre(0, 2, 7));
  EXPECT_THAT(*parse_windows("", 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(*parse_windows("0", 1), ElementsAre(0));
}

TEST(Windows, NamesWhatIsWrong) {
  EXPECT_THAT(windows_error("3-1", 8), HasSubstr("'3-1'"));
  EXPECT_THAT(windows_error("1,x", 8), HasSubstr("'x'"));
  EXPECT_THAT(windows_error("1,,2", 8), HasSubstr("''"));
  EXPECT_THAT(windows_error("1,", 8), HasSubstr("''"));
  EXPECT_THAT(windows_error("-1", 8), HasSubstr("'-1'"));
  EXPECT_THAT(windows_error("1-2-3", 8), HasSubstr("'1-2-3'"));
  EXPECT_THAT(windows_error("0-8", 8), HasSubstr("'0-8' is beyond the last window, 7 of 8"));
  EXPECT_THAT(windows_error("99999999999999999999", 8), HasSubstr("neither"));
  EXPECT_THAT(windows_error("0-3,2", 8), HasSubstr("2 is listed twice"));
}

TEST(Windows, Count) {
  // 2 * 4 ids have one whole window: the last id of the second has none after it.
  EXPECT_EQ(*count_windows(8, 4), 1);
  EXPECT_EQ(*count_windows(9, 4), 2);
  EXPECT_THAT(count_windows(4, 4).error().message, HasSubstr("has 4 tokens; one window needs 5"));
  EXPECT_THAT(count_windows(0, 4).error().message, HasSubstr("has 0 tokens"));
  EXPECT_EQ(count_windows(9, 0).error().code, ErrorCode::kInvalidArgument);
}

TEST(Documents, Split) {
  EXPECT_THAT(split_documents("one"), ElementsAre("one"));
  EXPECT_THAT(split_documents("one\n\0\ntwo\n\n\0\n\nthree"s), ElementsAre("one", "two\n", "\nthree"));
  EXPECT_THAT(split_documents("one\n\0\n"s), ElementsAre("one"));
  EXPECT_THAT(split_documents("\n\0\n\n\0\n"s), ElementsAre());
  // A NUL alone is text.
  EXPECT_THAT(split_documents("a\0b"s), ElementsAre("a\0b"s));
}

TEST(Documents, BosAndEos) {
  const auto tokenizer = Tokenizer::load("models/fable-13m");
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const TokenId bos = *tokenizer->bos_id(), eos = *tokenizer->eos_id();
  const auto one = *tokenizer->encode("one", {.add_special_tokens = false});
  const auto two = *tokenizer->encode("two", {.add_special_tokens = false});
  std::vector<TokenId> alone = {bos}, both = {bos};
  alone.insert(alone.end(), one.begin(), one.end());
  both.insert(both.end(), one.begin(), one.end());
  both.insert(both.end(), {eos, bos});
  both.insert(both.end(), two.begin(), two.end());
  both.push_back(eos);
  EXPECT_EQ(*encode_documents(*tokenizer, "one"), alone);
  EXPECT_EQ(*encode_documents(*tokenizer, "one\n\0\ntwo"s), both);
  EXPECT_TRUE(encode_documents(*tokenizer, "")->empty());
  EXPECT_THAT(encode_documents(*tokenizer, "one\n\0\n\xFF"s).error().message, HasSubstr("document 1: "));
}

TEST(TextFile, ReadsOrSaysWhy) {
  const std::string path = testing::TempDir() + "hearth_tokens_test.txt";
  std::ofstream(path, std::ios::binary) << "a\0b\n"s;
  EXPECT_EQ(*read_text_file(path), "a\0b\n"s);
  std::remove(path.c_str());
  EXPECT_EQ(read_text_file(path).error().code, ErrorCode::kNotFound);
  EXPECT_THAT(read_text_file(path).error().message, HasSubstr(path));
  EXPECT_THAT(read_text_file("/").error().message, HasSubstr("is a folder"));
}

}  // namespace
}  // namespace hearth
