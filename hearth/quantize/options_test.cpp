// SPDX-License-Identifier: Apache-2.0
// What users type, the windows of a calibration, and the folder that is written.
#include "hearth/quantize/options.h"

#include <nlohmann/json.hpp>
#include <set>

#include "hearth/checkpoint/test_util.h"
#include "hearth/quantize/choose.h"
#include "hearth/quantize/output.h"

namespace hearth {
namespace {

using testing_util::TempFolder;

TEST(FormatRules, MatchWholeComponents) {
  EXPECT_TRUE(matches_module("lm_head", "lm_head"));
  EXPECT_TRUE(matches_module("layers.0", "model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(matches_module("layers.1", "model.layers.10.self_attn.q_proj"));
  EXPECT_TRUE(matches_module("layers.1*", "model.layers.10.self_attn.q_proj"));
  EXPECT_TRUE(matches_module("down_proj", "model.layers.3.mlp.down_proj"));
  EXPECT_FALSE(matches_module("down", "model.layers.3.mlp.down_proj"));
  EXPECT_TRUE(matches_module("layers.*.self_attn", "model.layers.3.self_attn.o_proj"));
  EXPECT_FALSE(matches_module("layers.*.self_attn", "model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(matches_module("*_proj", "model.layers.3.mlp.up_proj"));
}

TEST(FormatRules, TheLastThatMatchesCounts) {
  QuantizeOptions options;
  options.to = "int4";
  auto rules = parse_format_rules("layers.0=fp8, layers.0.mlp=bf16,lm_head=sbvr");
  ASSERT_TRUE(rules) << rules.error().message;
  options.rules = *rules;
  const auto format = [&](const char* module) { return recipe_for(options, module, 256, 256, DType::kBf16).format; };
  EXPECT_EQ(format("model.layers.0.self_attn.q_proj"), "fp8");
  EXPECT_EQ(format("model.layers.0.mlp.up_proj"), "bf16");
  EXPECT_EQ(format("model.layers.1.mlp.up_proj"), "int4");
  EXPECT_EQ(format("lm_head"), "sbvr");
  options.rules.clear();
  EXPECT_EQ(format("lm_head"), "bf16");
}

TEST(FormatRules, SayWhatIsWrong) {
  const auto unknown = parse_format_rules("lm_head=int3");
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, testing::HasSubstr("unknown format 'int3'; known: fp8, int4"));
  EXPECT_FALSE(parse_format_rules("lm_head"));
  EXPECT_FALSE(parse_format_rules("=fp8"));
  const auto file = parse_rule_file("# kept\nlm_head = bf16\n\nlayers.0: fp8\n");
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, testing::HasSubstr("line 4"));
  EXPECT_EQ(parse_rule_file("# kept\nlm_head = bf16 # as it is\n")->size(), 1u);
}

TEST(QuantizeOptions, RefusesWhatItDoesNotKnow) {
  QuantizeOptions options;
  options.to = "int5";
  Status status = check_options(options);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(status.error().message,
              testing::HasSubstr("'int5'; known: fp8, int4, fireq, fireq-c4, sbvr, bf16, auto"));
  options.to = "int4";
  options.method = "magic";
  status = check_options(options);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, testing::HasSubstr("known: auto, rtn, clip, gptq, authors"));
  options.method = "authors";
  status = check_options(options);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, testing::HasSubstr("--to int4 has no use for it"));
  options.rules = {{"layers.0", "sbvr"}};
  EXPECT_TRUE(check_options(options));
  EXPECT_EQ(recipe_for(options, "model.layers.0.mlp.up_proj", 64, 128, DType::kBf16).encode.method,
            EncodeMethod::kAuthors);
  EXPECT_EQ(recipe_for(options, "model.layers.1.mlp.up_proj", 64, 128, DType::kBf16).encode.method,
            EncodeMethod::kGptq);
  options.lines = 16;
  EXPECT_FALSE(check_options(options));
  options.lines = 0;
  options.rules.clear();
  options.method = "gptq";
  EXPECT_TRUE(check_options(options));
  options.group_size = 100;
  EXPECT_FALSE(check_options(options));
}

TEST(QuantizeOptions, RefusesWhatTheFormatsHaveNoUseFor) {
  using Change = void (*)(QuantizeOptions&);
  struct Case {
    const char* option;
    Change change;
    const char* to;    // has no use for it
    const char* user;  // has
  };
  const Case cases[] = {
      {"--group-size", [](QuantizeOptions& o) { o.group_size = 64; }, "fp8", "fireq-c4"},
      {"--group-size", [](QuantizeOptions& o) { o.group_size = 0; }, "fireq", "int4"},
      {"--asymmetric", [](QuantizeOptions& o) { o.asymmetric = true; }, "fireq", "int4"},
      {"--bitvectors", [](QuantizeOptions& o) { o.bitvectors = 3; }, "int4", "sbvr"},
      {"--lines", [](QuantizeOptions& o) { o.lines = 16; }, "int4", "sbvr"},
      {"--max-bits", [](QuantizeOptions& o) { o.max_bits = 4.1; }, "fp8", "sbvr"},
      {"--bits", [](QuantizeOptions& o) { o.bits = 4.25; }, "int4", "auto"},
      {"--candidates", [](QuantizeOptions& o) { o.candidates = {"fp8"}; }, "int4", "auto"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} {}", c.to, c.option));
    QuantizeOptions options;
    options.to = c.to;
    c.change(options);
    const Status status = check_options(options);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, testing::HasSubstr(c.option));
    options.to = c.user;
    if (options.to == kAutoFormat) {
      options.calibration = CalibrationOptions{};
      options.bits = 4.25;
    }
    EXPECT_TRUE(check_options(options));
  }
  // It has no use for the option, whatever the value.
  QuantizeOptions useless;
  useless.to = "int4";
  useless.max_bits = 3;
  EXPECT_THAT(check_options(useless).error().message, testing::HasSubstr("--max-bits are for sbvr"));
  // A rule's format counts as well as that of --to.
  QuantizeOptions options;
  options.to = "int4";
  options.lines = 16;
  options.rules = {{"layers.0", "sbvr"}};
  EXPECT_TRUE(check_options(options));
  options = {};
  options.to = "int4";
  options.group_size = 0;
  options.rules = {{"layers.0", "fireq"}};
  EXPECT_FALSE(check_options(options));
}

TEST(QuantizeOptions, GroupsThatDoNotFitKeepTheModule) {
  QuantizeOptions options;
  options.to = "int4";
  const ModuleRecipe kept = recipe_for(options, "model.layers.0.mlp.down_proj", 64, 200, DType::kBf16);
  EXPECT_TRUE(kept.plain());
  EXPECT_THAT(kept.note, testing::HasSubstr("200 are no multiple of the group of 128"));
  options.group_size = 0;
  EXPECT_EQ(recipe_for(options, "model.layers.0.mlp.down_proj", 64, 200, DType::kBf16).format, "int4");
}

// Against all choices: greedy need not find the best, but never leaves the budget, and never loses to one format for
// all.
TEST(FitFormats, StaysInTheBudgetAndTakesTheMostSensitiveFirst) {
  const auto linear = [](const char* name, double error) {
    return LinearCosts{name, 1000, {{"int4", 500, error}, {"fp8", 1000, error / 200}, {"bf16", 2000, 0}}};
  };
  const std::vector<LinearCosts> linears = {linear("a", 1), linear("b", 8), linear("c", 2)};
  const auto formats = [&](double bits) {
    const auto rules = fit_formats(linears, bits);
    HEARTH_CHECK(rules.has_value(), "{}", rules.error().message);
    std::string text;
    for (const FormatRule& rule : *rules) text += rule.pattern + "=" + rule.format + " ";
    return text;
  };
  EXPECT_EQ(formats(4), "a=int4 b=int4 c=int4 ");
  EXPECT_EQ(formats(5.4), "a=int4 b=fp8 c=int4 ");
  EXPECT_EQ(formats(6.7), "a=int4 b=fp8 c=fp8 ");
  EXPECT_EQ(formats(8), "a=fp8 b=fp8 c=fp8 ");
  EXPECT_EQ(formats(16), "a=bf16 b=bf16 c=bf16 ");
  const auto none = fit_formats(linears, 3.9);
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, testing::HasSubstr("take 4 bits a weight"));
}

TEST(SettledFormats, HaveOneForEachLinear) {
  nlohmann::ordered_json settled = nlohmann::ordered_json::object();
  for (const LayerTensors::Named& named : LayerTensors::linears())
    settled[fmt::format("model.layers.0.{}", named.name)] = "fp8";
  settled["model.layers.0.mlp.up_proj"] = "bf16";
  const auto rules = settled_formats(settled, 1);
  ASSERT_TRUE(rules) << rules.error().message;
  ASSERT_EQ(rules->size(), 7u);
  EXPECT_EQ(rules->front().pattern, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(rules->front().format, "fp8");
  EXPECT_EQ((*rules)[5].format, "bf16");
  EXPECT_EQ(settled_formats(settled, 2).error().code, ErrorCode::kCorrupt);
  for (const auto& wrong : {nlohmann::ordered_json(7), nlohmann::ordered_json("foo")}) {
    settled["model.layers.0.mlp.up_proj"] = wrong;
    EXPECT_THAT(settled_formats(settled, 1).error().message, testing::HasSubstr("model.layers.0.mlp.up_proj"));
  }
  for (const auto& wrong : {nlohmann::ordered_json(7), nlohmann::ordered_json::array(), nlohmann::ordered_json()})
    EXPECT_FALSE(settled_formats(wrong, 1));
}

TEST(Calibration, ReadsTextAndJsonLines) {
  const TempFolder folder;
  const auto lines = folder.put("a.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \" \"}\n{\"text\": \"two\\nthree\"}");
  EXPECT_EQ(*read_calibration_texts(lines), (std::vector<std::string>{"one", "two\nthree"}));
  const auto text = folder.put("a.txt", std::string_view("one\ntwo\n\0\nthree\n", 16));
  EXPECT_EQ(*read_calibration_texts(text), (std::vector<std::string>{"one\ntwo", "three\n"}));
  const auto empty = read_calibration_texts(folder.put("b.jsonl", "\n  \n"));
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error().code, ErrorCode::kInvalidArgument);
  const auto wrong = read_calibration_texts(folder.put("c.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n"));
  ASSERT_FALSE(wrong);
  EXPECT_THAT(wrong.error().message, testing::HasSubstr("c.jsonl line 2"));
  EXPECT_EQ(read_calibration_texts(folder.path() / "none").error().code, ErrorCode::kNotFound);
}

class Windows : public ::testing::Test {
 protected:
  static Tokenizer tokenizer() {
    auto loaded = Tokenizer::load("models/fable-13m");
    HEARTH_CHECK(loaded.has_value(), "{}", loaded.error().message);
    return *loaded;
  }
  static std::vector<std::string> texts() {
    std::vector<std::string> texts(3);
    for (size_t i = 0; i < texts.size(); ++i)
      for (int word = 0; word < 400; ++word) texts[i] += fmt::format("{} of text {}, ", word, i);
    return texts;
  }
};

TEST_F(Windows, HaveTheLengthAskedForAndFollowFromTheSeed) {
  const auto a = make_windows(texts(), tokenizer(), 8, 64, 1), b = make_windows(texts(), tokenizer(), 8, 64, 1);
  ASSERT_TRUE(a) << a.error().message;
  EXPECT_EQ(a->windows.size(), 8u);
  for (const auto& window : a->windows) EXPECT_EQ(window.size(), 64u);
  EXPECT_EQ(a->windows, b->windows);
  EXPECT_NE(make_windows(texts(), tokenizer(), 8, 64, 2)->windows, a->windows);
  EXPECT_EQ(std::set<std::vector<int32_t>>(a->windows.begin(), a->windows.end()).size(), 8u);
}

TEST_F(Windows, AreFewerThanAskedForWhereTheTextIsShort) {
  const auto set = make_windows(texts(), tokenizer(), 1000, 512, 1);
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_LT(set->windows.size(), 1000u);
  EXPECT_GE(set->windows.size(), 1u);
  const auto none = make_windows({"too short"}, tokenizer(), 1, 512, 1);
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, testing::HasSubstr("a window needs 512"));
}

StoredTensor tensor(const std::string& name) {
  return {{name, DType::kF32, Shape{2}}, std::vector<std::byte>(8, std::byte{1})};
}

TEST(OutputFolder, GoesOnWhereItWasAndIsNoCheckpointBefore) {
  const TempFolder folder, source;
  source.put("tokenizer.json", "{}");
  source.put("notes.txt", "private");
  const auto dir = folder.path() / "out";
  const nlohmann::ordered_json fingerprint = {{"to", "fp8"}, {"seed", 1}};
  {
    auto out = OutputFolder::open(dir, fingerprint, 2);
    ASSERT_TRUE(out) << out.error().message;
    const StoredTensor a = tensor("a");
    ASSERT_TRUE(out->write_shard({&a, 1}, {{{"module", "a"}}}));
  }
  EXPECT_FALSE(Checkpoint::open(dir));
  {
    const auto first = OutputFolder::open(dir, fingerprint, 2);
    ASSERT_TRUE(first) << first.error().message;
    const auto second = OutputFolder::open(dir, fingerprint, 2);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(second.error().message, testing::HasSubstr("another run writes to it"));
  }
  std::ofstream(dir / "model-00002-of-00002.safetensors.17-0.tmp") << "half";
  auto out = OutputFolder::open(dir, fingerprint, 2);
  ASSERT_TRUE(out) << out.error().message;
  EXPECT_EQ(out->shards_done(), 1);
  EXPECT_EQ(out->lines().size(), 1u);
  const StoredTensor b = tensor("b");
  ASSERT_TRUE(out->write_shard({&b, 1}, nlohmann::ordered_json::array()));
  ASSERT_TRUE(out->finish(source.path(), {{"model_type", "llama"}}));
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"config.json", "model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors", "model.safetensors.index.json",
                                          "quantize_report.jsonl", "tokenizer.json"}));
  const auto checkpoint = Checkpoint::open(dir);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
}

TEST(OutputFolder, LeavesOthersAlone) {
  const TempFolder folder;
  folder.put("thesis.txt", "years of work");
  const nlohmann::ordered_json fingerprint = {{"to", "fp8"}};
  const auto full = OutputFolder::open(folder.path(), fingerprint, 1);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(full.error().message, testing::HasSubstr("is not empty: it has thesis.txt"));
  EXPECT_EQ(folder.names(), std::vector<std::string>{"thesis.txt"});

  {
    auto run = OutputFolder::open(folder.path() / "run", fingerprint, 1);
    const StoredTensor a = tensor("a");
    ASSERT_TRUE(run && run->write_shard({&a, 1}, {{{"module", "a"}}}));
  }
  const auto other = OutputFolder::open(folder.path() / "run", {{"to", "int4"}}, 1);
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, testing::HasSubstr("its to is \"fp8\", this one's \"int4\""));
  folder.put("run/quantize_state.json", "{");
  EXPECT_EQ(OutputFolder::open(folder.path() / "run", fingerprint, 1).error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace hearth
