// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hearth/cli/help.h"
#include "hearth/cli/options.h"

namespace hearth {
namespace {

using testing::HasSubstr;

constexpr Setting<int64_t> kCount{"--count", "N", 1, 10, "tokens", ""};
constexpr Setting<double> kShare{"--share", "X", 0, 1, "", ""};

std::string count_error(std::string_view text) {
  const auto result = parse_number(text, kCount);
  return result ? "no error" : result.error().message;
}

TEST(Numbers, InRange) {
  EXPECT_EQ(*parse_number("1", kCount), 1);
  EXPECT_EQ(*parse_number("10", kCount), 10);
  EXPECT_DOUBLE_EQ(*parse_number("0.25", kShare), 0.25);
  EXPECT_DOUBLE_EQ(*parse_number("1e-3", kShare), 1e-3);
}

TEST(Numbers, SaysWhatWasFoundAndWanted) {
  EXPECT_EQ(count_error("0"), "0 is out of range; wanted 1 to 10 tokens");
  EXPECT_EQ(count_error("11"), "11 is out of range; wanted 1 to 10 tokens");
  EXPECT_EQ(count_error("99999999999999999999"), "99999999999999999999 is out of range; wanted 1 to 10 tokens");
  for (const char* bad : {"", "x", "1x", " 1", "1.5", "0x1", "1e1"})
    EXPECT_EQ(count_error(bad), fmt::format("'{}' is not a whole number; wanted 1 to 10 tokens", bad));
  for (const char* bad : {"nan", "inf", "-inf", "one", "0.5.5"})
    EXPECT_THAT(parse_number(bad, kShare).error().message, HasSubstr("is not a number; wanted 0 to 1")) << bad;
}

TEST(Numbers, ALargeLimitIsStatedAndNoneIsNot) {
  constexpr Setting<int64_t> kLarge{"--large", "N", 0, int64_t{1} << 40, "", ""},
      kOpen{"--open", "N", 1, kNoLimit, "", ""};
  EXPECT_EQ(parse_number("1099511627777", kLarge).error().message,
            "1099511627777 is out of range; wanted 0 to 1099511627776");
  EXPECT_EQ(parse_number("0", kOpen).error().message, "0 is out of range; wanted at least 1");
}

TEST(LogitBiasFlag, Parses) {
  EXPECT_EQ(parse_logit_bias("17=-2.5")->token, 17);
  EXPECT_EQ(parse_logit_bias("17=-2.5")->bias, -2.5f);
  EXPECT_THAT(parse_logit_bias("17").error().message, HasSubstr("has no '='; wanted ID=BIAS"));
  EXPECT_THAT(parse_logit_bias("x=1").error().message, HasSubstr("--logit-bias: 'x' is not a whole number"));
  EXPECT_THAT(parse_logit_bias("1=101").error().message, HasSubstr("--logit-bias: 101 is out of range"));
  EXPECT_THAT(parse_token_id("--stop-token-ids", "-1").error().message, HasSubstr("--stop-token-ids: -1"));
}

TEST(Options, DefaultsAndRepeats) {
  CLI::App app;
  SamplingSettings s;
  add_sampling_options(app, s, "128");
  const auto parse = [&](std::vector<std::string> words) {
    std::reverse(words.begin(), words.end());
    app.parse(words);
  };
  parse({});
  EXPECT_FALSE(s.temperature);
  EXPECT_EQ(s.presence_penalty, 0.0);
  parse({"--temperature", "0.5", "--temperature", "0.25", "--stop", "a", "--stop", "-b", "--presence-penalty", "-1.5"});
  EXPECT_EQ(s.temperature, 0.25);
  EXPECT_THAT(s.stop, testing::ElementsAre("a", "-b"));
  EXPECT_EQ(s.presence_penalty, -1.5);
  EXPECT_THROW(parse({"--top-p", "1.5"}), CLI::ValidationError);
  EXPECT_THROW(parse({"--top-p"}), CLI::ParseError);
}

TEST(Help, StatesDefaultsUnitsAndRanges) {
  CLI::App app;
  app.formatter(help_formatter());
  ModelSettings model;
  SamplingSettings s;
  add_model_options(app, model);
  add_sampling_options(app, s, "128, or what fits");
  const std::string help = app.help();
  EXPECT_THAT(help, HasSubstr("--max-tokens N"));
  EXPECT_THAT(help, HasSubstr("(1 to 2147483648 tokens; default: 128, or what fits)"));
  EXPECT_THAT(help, HasSubstr("-2 to 2; default: 0"));
  // No line is wider than the help's width.
  size_t begin = 0;
  while (begin < help.size()) {
    const size_t end = std::min(help.find('\n', begin), help.size());
    EXPECT_LE(end - begin, 110u) << help.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(Help, Wrap) {
  EXPECT_EQ(wrap("aa bb cc", 2, 7), "aa bb\n  cc");
  EXPECT_EQ(wrap("", 2, 7), "");
  EXPECT_EQ(wrap("a-very-long-word b", 1, 5), "a-very-long-word\n b");
}

TEST(Help, Nearest) {
  const std::vector<std::string> commands = {"generate", "chat", "eval"};
  EXPECT_EQ(nearest("genrate", commands), "generate");
  EXPECT_EQ(nearest("cat", commands), "chat");
  EXPECT_EQ(nearest("evla", commands), "eval");
  EXPECT_EQ(nearest("serve", commands), "");
  EXPECT_EQ(nearest("x", commands), "");
}

}  // namespace
}  // namespace hearth
