// SPDX-License-Identifier: Apache-2.0
// Lists of windows and items: what parses, what is refused, and that the committed ones are whole.
#include "hearth/eval/chosen_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hearth {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kWindows =
    R"({"text": "book", "unit": "window", "ctx": 16, "ids": 100, "of": 6, "seed": 4, "chosen": [0, 2, 5]})";

// kWindows with one piece of it replaced.
std::string changed(const std::string& from, const std::string& to) {
  std::string text = kWindows;
  return text.replace(text.find(from), from.size(), to);
}

std::string error_of(const std::string& json) {
  const auto list = parse_chosen_list(json, "l");
  EXPECT_TRUE(list || list.error().code == ErrorCode::kCorrupt);
  return list ? "no error" : list.error().message;
}

TEST(ChosenList, Parses) {
  const auto list = parse_chosen_list(kWindows, "few");
  ASSERT_TRUE(list) << list.error().message;
  EXPECT_EQ(list->name, "few");
  EXPECT_EQ(list->text, "book");
  EXPECT_EQ(list->ctx, 16);
  EXPECT_EQ(list->seed, 4);
  EXPECT_THAT(list->chosen, ElementsAre(0, 2, 5));
  EXPECT_TRUE(check_window_list(*list, 16, 100, 6));
  const auto items = parse_chosen_list(R"({"text": "l", "unit": "item", "of": 3, "seed": 0, "chosen": [1]})", "one");
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_TRUE(check_item_list(*items, 3));
}

TEST(ChosenList, NamesWhatIsWrong) {
  EXPECT_THAT(error_of("[]"), HasSubstr("array is not an object"));
  EXPECT_THAT(error_of("{"), HasSubstr("line 1"));
  EXPECT_THAT(error_of(changed("\"text\"", "\"name\"")), HasSubstr("no string 'text'"));
  EXPECT_THAT(error_of(changed("window", "word")), HasSubstr("'unit' is 'word'; wanted window or item"));
  EXPECT_THAT(error_of(changed("\"ctx\": 16, ", "")), HasSubstr("no number 'ctx'"));
  EXPECT_THAT(error_of(changed("16", "0")), HasSubstr("'ctx' is 0; wanted a whole number from 1"));
  EXPECT_THAT(error_of(changed("16", "18446744073709551615")), HasSubstr("'ctx' is 18446744073709551615"));
  EXPECT_THAT(error_of(changed("16", "16.5")), HasSubstr("'ctx' is 16.5"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "[]")), HasSubstr("no list 'chosen'"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "7")), HasSubstr("no list 'chosen'"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "[0, 6]")), HasSubstr("'chosen' has 6; wanted whole numbers from 0 to 5"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "[-1]")), HasSubstr("'chosen' has -1"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "[2, 2]")), HasSubstr("2 after 2; wanted ascending"));
  EXPECT_THAT(error_of(changed("[0, 2, 5]", "[\"1\"]")), HasSubstr("'chosen' has \"1\""));
}

TEST(ChosenList, SuitsOneTextAlone) {
  const ChosenList list = *parse_chosen_list(kWindows, "few");
  EXPECT_THAT(check_window_list(list, 32, 100, 6).error().message, HasSubstr("windows of 16 tokens; these have 32"));
  EXPECT_THAT(check_window_list(list, 16, 101, 6).error().message,
              HasSubstr("made for 100 ids in 6 windows; this text has 101 in 6"));
  EXPECT_THAT(check_item_list(list, 6).error().message, HasSubstr("list few is of windows"));
  const ChosenList all = all_of("book", ChosenList::Unit::kItem, 3);
  EXPECT_THAT(all.chosen, ElementsAre(0, 1, 2));
  EXPECT_TRUE(check_item_list(all, 3));
  EXPECT_FALSE(check_item_list(all, 4));
  EXPECT_FALSE(check_window_list(all, 16, 100, 3));
  EXPECT_TRUE(check_window_list(all_of("book", ChosenList::Unit::kWindow, 3), 16, 100, 3));
}

TEST(ChosenList, TheCommittedOnesAreWhole) {
  for (const auto& [file, count] :
       {std::pair{"heldout_books_128", 128}, {"wikitext2_test_128", 128}, {"lambada_openai_1000", 1000}}) {
    const auto list = read_chosen_list(std::string("bench/eval/") + file + ".json");
    ASSERT_TRUE(list) << list.error().message;
    EXPECT_EQ(std::ssize(list->chosen), count) << file;
    EXPECT_EQ(list->name, file);
    EXPECT_TRUE(std::string(file).starts_with(list->text)) << file;
  }
  EXPECT_THAT(read_chosen_list("bench/eval/none.json").error().message, HasSubstr("bench/eval/none.json"));
}

}  // namespace
}  // namespace hearth
