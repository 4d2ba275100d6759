// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/model_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "hearth/cli/serve_settings.h"

namespace hearth {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ModelOptions, AreKeysAndValuesBehindAName) {
  const auto named =
      parse_model_options("org/name:8b:  ttft-slo=0.5 , tpot-slo=0.05, weight=2.5, kv-guarantee=64Mi, kv-cap=1000");
  ASSERT_TRUE(named) << named.error().message;
  EXPECT_EQ(named->model, "org/name:8b");
  EXPECT_EQ(named->terms.slo.ttft_us, 500'000);
  EXPECT_EQ(named->terms.slo.tpot_us, 50'000);
  EXPECT_EQ(named->terms.weight, 2.5);
  EXPECT_EQ(named->limits.guarantee_bytes, int64_t{64} << 20);
  EXPECT_EQ(named->limits.cap_bytes, 1000);
}

TEST(ModelOptions, ErrorsSayWhatWasFoundAndWanted) {
  const auto message = [](std::string_view text) {
    const auto named = parse_model_options(text);
    return named ? "no error" : named.error().message;
  };
  EXPECT_THAT(message("chat"), HasSubstr("\"NAME: KEY=VALUE, ...\""));
  EXPECT_THAT(message(": ttft-slo=1"), HasSubstr("names no model"));
  EXPECT_THAT(message("chat: ttft-slo"), HasSubstr("no KEY=VALUE"));
  EXPECT_THAT(message("chat: ttft=1"), HasSubstr("wanted one of ttft-slo, tpot-slo, weight, kv-guarantee, kv-cap"));
  EXPECT_THAT(message("chat: ttft-slo=x"), HasSubstr("chat: ttft-slo"));
  EXPECT_THAT(message("chat: tpot-slo=-1"), HasSubstr("0 to 3600 seconds"));
  EXPECT_THAT(message("chat: kv-cap=some"), HasSubstr("chat: kv-cap: 'some' is no number of bytes"));
  EXPECT_THAT(message("chat: weight=0"), HasSubstr("0.01 to 100"));
  EXPECT_THAT(message("chat: ttft-slo=1,"), HasSubstr("no KEY=VALUE"));
}

ServeSettings two_models() {
  ServeSettings s;
  s.models = {{.names = {"chat", "talk"}, .path = "models/fable-13m"}, {.names = {}, .path = "models/fable-13m/"}};
  return s;
}

TEST(ModelOptions, FindTheirModelByAnyNameOrItsPath) {
  ServeSettings s = two_models();
  s.model_options = {"talk: ttft-slo=2, kv-cap=1Gi", "models/fable-13m/: tpot-slo=0.1"};
  const auto options = make_serve_options(s);
  ASSERT_TRUE(options) << options.error().message;
  EXPECT_EQ(options->models[0].terms.slo.ttft_us, 2'000'000);
  EXPECT_EQ(options->models[0].terms.slo.tpot_us, 0);
  EXPECT_EQ(options->models[1].terms.slo.tpot_us, 100'000);
  EXPECT_EQ(options->models[0].limits.cap_bytes, int64_t{1} << 30);
  s.model_options = {"chatty: ttft-slo=2"};
  const auto unknown = make_serve_options(s);
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, HasSubstr("no model 'chatty'; there is chat, "));
}

class ModelTable : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  Result<EffectiveSettings> read(const std::string& text) {
    std::ofstream(path_) << text;
    ServeFlags flags;
    flags.config = path_.string();
    return effective_settings(flags, {[](const char*) { return std::nullopt; }});
  }
  std::filesystem::path path_ =
      std::filesystem::path(testing::TempDir()) / ("hearth-model-options-" + std::to_string(getpid()) + ".toml");
};

TEST_F(ModelTable, HasTheKeysToo) {
  const auto s = read(
      "model-options = [\"b: ttft-slo=9\"]\n"
      "[[model]]\npath = \"x\"\nnames = [\"a\", \"aa\"]\nttft-slo = 1.5\ntpot-slo = 2\n"
      "[[model]]\npath = \"y\"\nttft-slo = 3\n");
  ASSERT_TRUE(s) << s.error().message;
  EXPECT_THAT(s->values.model_options, ElementsAre("b: ttft-slo=9", "a: tpot-slo=2, ttft-slo=1.5", "y: ttft-slo=3"));
}

TEST_F(ModelTable, NamesTheLineOfAnError) {
  const auto wrong_type = read("[[model]]\npath = \"x\"\nttft-slo = true\n");
  ASSERT_FALSE(wrong_type);
  EXPECT_THAT(wrong_type.error().message, HasSubstr(".toml:3: ttft-slo is true or false; wanted a number"));
  const auto out_of_range = read("[[model]]\npath = \"x\"\nttft-slo = 4000\n");
  ASSERT_FALSE(out_of_range);
  EXPECT_THAT(out_of_range.error().message, HasSubstr("0 to 3600 seconds"));
  const auto unknown = read("[[model]]\npath = \"x\"\ntttf-slo = 1\n");
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message,
              HasSubstr("unknown key 'tttf-slo' of [[model]]; wanted path, name, names or one"));
}

}  // namespace
}  // namespace hearth
