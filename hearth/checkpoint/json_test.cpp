// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/json.h"

#include <nlohmann/json.hpp>

#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing_util::TempFolder;

TEST(ParseJson, ReadsValuesAndSkipsAByteOrderMark) {
  const auto value = parse_json("\xEF\xBB\xBF{\"a\": [1, 2.5, null, \"x\"]}\n");
  ASSERT_TRUE(value) << value.error().message;
  EXPECT_EQ((*value)["a"][1], 2.5);
}

TEST(ParseJson, SaysWhereTheTextIsWrong) {
  EXPECT_ERROR(parse_json(""), kCorrupt, "line 1, column 1: not JSON");
  EXPECT_ERROR(parse_json("{\n  \"a\": 1,\n  \"b\": ?\n}"), kCorrupt, "line 3, column 8: not JSON", "invalid literal");
  EXPECT_ERROR(parse_json("{\"a\": 1"), kCorrupt, "line 1, column 8: not JSON", "unexpected end of input");
  EXPECT_ERROR(parse_json("{\"a\": 1}}"), kCorrupt, "line 1, column 9");
  EXPECT_ERROR(parse_json("{\"a\": NaN}"), kCorrupt, "line 1, column 7");
  EXPECT_ERROR(parse_json("{\"a\": 1e999}"), kCorrupt, "not JSON: number overflow");
  EXPECT_ERROR(parse_json("\"\xFF\""), kCorrupt, "UTF-8");
  const auto large = parse_json(fmt::format("[{:x>1000000}]", ""));
  EXPECT_ERROR(large, kCorrupt, "line 1, column 2");
  EXPECT_LT(large.error().message.size(), 500u);
}

TEST(ParseJson, LimitsTheDepth) {
  const auto nested = [](int depth) { return fmt::format("{0:[>{2}}{1:]>{2}}", "", "", depth); };
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth)));
  EXPECT_ERROR(parse_json(nested(kMaxJsonDepth + 1)), kCorrupt, "line 1, column 101: JSON nests deeper than 100");
  EXPECT_ERROR(parse_json(fmt::format("{:[>10000000}", "")), kCorrupt, "deeper than 100");
  // Brackets in strings do not count, also behind escapes.
  EXPECT_TRUE(parse_json(fmt::format("[\"\\\"{:[>1000}\\\\\"]", "")));
}

TEST(ReadJsonObject, NamesTheFile) {
  const TempFolder dir;
  ASSERT_TRUE(read_json_object(dir.put("good.json", "{}")));
  EXPECT_ERROR(read_json_object(dir.path() / "absent.json"), kNotFound, "absent.json");
  EXPECT_ERROR(read_json_object(dir.put("bad.json", "{]")), kCorrupt, "bad.json: line 1, column 2: not JSON");
  EXPECT_ERROR(read_json_object(dir.put("list.json", "[]")), kCorrupt, "list.json holds array; wanted an object");
  EXPECT_ERROR(read_json_object(dir.path()), kInvalidArgument, "is a folder");
}

TEST(JsonSyntaxError, FindsWhatStrictParsersRefuse) {
  EXPECT_EQ(json_syntax_error("{\"a\": [1, -2, 3.5e6]}"), std::nullopt);
  EXPECT_THAT(json_syntax_error("{\"a\": [1,]}").value_or(""), ::testing::HasSubstr("line 1, column 10"));
  EXPECT_THAT(json_syntax_error("{\"k\": {\"x\": 99999999999999999999}}").value_or(""),
              ::testing::HasSubstr("'k': the number '99999999999999999999'"));
}

}  // namespace
}  // namespace hearth
