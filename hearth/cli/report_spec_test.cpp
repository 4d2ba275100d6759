// SPDX-License-Identifier: Apache-2.0
// How a report's models and texts are named, and what is read of a quantizer's report.
#include "hearth/cli/report_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "hearth/checkpoint/test_util.h"
#include "hearth/cli/quantize_report.h"

namespace hearth {
namespace {

using testing::HasSubstr;

TEST(ModelSpec, Parses) {
  const auto expect = [](std::string_view text, std::string_view name, std::string_view path,
                         std::optional<KvFormatId> kv) {
    const auto spec = parse_model_spec(text);
    ASSERT_TRUE(spec) << spec.error().message;
    EXPECT_EQ(spec->name, name) << text;
    EXPECT_EQ(spec->path, path) << text;
    EXPECT_EQ(spec->kv, kv) << text;
  };
  expect("out/fireq", "", "out/fireq", std::nullopt);
  expect("fireq-kv4=out/fireq@kv=int4-fireq", "fireq-kv4", "out/fireq", KvFormatId::kInt4Fireq);
  expect("org/name@main@kv=bf16", "", "org/name@main", KvFormatId::kBf16);
  expect("a=b=c", "a", "b=c", std::nullopt);
  // A '/' before '=': a path.
  expect("out/x=1", "", "out/x=1", std::nullopt);
}

TEST(ModelSpec, NamesWhatIsWrong) {
  EXPECT_THAT(parse_model_spec("m@kv=int5").error().message, HasSubstr("KV format 'int5' is unknown; wanted f32"));
  EXPECT_THAT(parse_model_spec("=m").error().message, HasSubstr("no name before '='"));
  EXPECT_THAT(parse_model_spec("a=").error().message, HasSubstr("has no path"));
  EXPECT_THAT(parse_model_spec("@kv=f32").error().message, HasSubstr("has no path"));
  EXPECT_THAT(parse_model_spec("").error().message, HasSubstr("has no path"));
}

TEST(FileSpec, IsNamedByTheFile) {
  EXPECT_EQ(parse_file_spec("dir/book.txt")->name, "book");
  EXPECT_EQ(parse_file_spec("b=dir/book.txt")->name, "b");
  EXPECT_EQ(parse_file_spec("b=dir/book.txt")->path, "dir/book.txt");
  EXPECT_FALSE(parse_file_spec("b="));
}

TEST(QuantizeReport, IsReadAndSummed) {
  const testing_util::TempFolder dir;
  EXPECT_TRUE(read_quantize_report(dir.path())->empty());
  dir.put("quantize_report.jsonl",
          "{\"module\":\"a\",\"format\":\"int4\",\"method\":\"gptq\",\"bits_per_weight\":4.125,\"rel_error\":0.01,"
          "\"proxy\":0.002}\n{\"module\":\"b\",\"format\":\"fp8\",\"method\":\"nearest\",\"rel_error\":0.03}\n"
          "{\"module\":\"lm_head\",\"format\":\"bf16\",\"method\":\"none\"}\n");
  const auto modules = read_quantize_report(dir.path());
  ASSERT_TRUE(modules) << modules.error().message;
  ASSERT_EQ(modules->size(), 3u);
  EXPECT_EQ(formats_of(*modules), "int4 + fp8");
  EXPECT_EQ(methods_of(*modules), "gptq + nearest");
  const std::string text = quantize_report_text(*modules);
  EXPECT_THAT(text, testing::ContainsRegex("a +int4 +gptq +1.000e-02 +2.000e-03\n"));
  EXPECT_THAT(text, testing::ContainsRegex("lm_head +bf16 +none +- +-\n"));
  EXPECT_THAT(text, testing::ContainsRegex("mean of the quantized +2.000e-02 +2.000e-03\n"));
  EXPECT_EQ(quantize_report_json(*modules)[0]["proxy"], 0.002);
  EXPECT_TRUE(quantize_report_json(*modules)[2]["rel_error"].is_null());
  dir.put("quantize_report.jsonl", "{\"module\":\"a\",\"format\":\"int4\",\"method\":\"gptq\"}\n{\"module\":1}\n");
  EXPECT_THAT(read_quantize_report(dir.path()).error().message, HasSubstr("line 2: no string 'module'"));
}

}  // namespace
}  // namespace hearth
