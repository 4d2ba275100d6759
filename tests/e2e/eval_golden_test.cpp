// SPDX-License-Identifier: Apache-2.0
// The whole evaluations of both fable models against transformers: perplexity of two texts within 2e-5 nats
// per token, LAMBADA within one item. HEARTH_DATA names the folder with models/ and data/; without it these
// tests fail. On four cores the small model takes minutes, the large one most of an hour.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

using nlohmann::json;

constexpr int kTimeoutSeconds = 3 * 3600;

class EvalGolden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* data = std::getenv("HEARTH_DATA");
    ASSERT_NE(data, nullptr) << "HEARTH_DATA is not set: it names the folder that holds models/ and data/eval/";
    data_ = data;
    std::ifstream file(model() + "/golden.json");
    ASSERT_TRUE(file) << model() << "/golden.json is missing";
    golden_ = json::parse(file);
  }
  std::string model() const { return data_ + "/models/" + GetParam(); }

  json run_eval(std::vector<std::string> args) const {
    args.insert(args.begin(), "eval");
    args.push_back("--json");
    const ProcessResult result = run_hearth(args, {.show_stderr = true, .timeout_s = kTimeoutSeconds});
    EXPECT_EQ(result.exit_code, 0);
    return json::parse(result.out, nullptr, false);
  }
  void expect_perplexity(const std::string& text, const json& expected) const {
    const json result =
        run_eval({"ppl", model(), "--text", data_ + "/data/eval/" + text, "--ctx", expected["ctx"].dump()});
    ASSERT_TRUE(result.is_object());
    EXPECT_EQ(result["tokens"], expected["tokens"]);
    EXPECT_EQ(result["windows"], expected["windows"]);
    EXPECT_NEAR(result["nll_per_token"].get<double>(), expected["nll_per_token"].get<double>(), 2e-5);
  }

  std::string data_;
  json golden_;
};

TEST_P(EvalGolden, LambadaWithinOneItem) {
  const json& expected = golden_["lambada_openai"];
  const json result = run_eval({"lambada", model(), "--data", data_ + "/data/eval/lambada_openai.jsonl"});
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["n"], expected["n"]);
  const double correct = expected["acc"].get<double>() * expected["n"].get<double>();
  EXPECT_NEAR(result["correct"].get<double>(), correct, 1.01);
  EXPECT_NEAR(result["nll_per_word"].get<double>(), expected["nll_per_word"].get<double>(), 1e-4);
}

TEST_P(EvalGolden, PerplexityOfWikitext) { expect_perplexity("wikitext2_test.txt", golden_["ppl_wikitext2_test"]); }

TEST_P(EvalGolden, PerplexityOfHeldOutBooks) { expect_perplexity("heldout_books.txt", golden_["ppl_heldout_books"]); }

INSTANTIATE_TEST_SUITE_P(Models, EvalGolden, testing::Values("fable-13m", "fable-82m"),
                         [](const auto& test) { return test.param[6] == '1' ? "Fable13m" : "Fable82m"; });

}  // namespace
}  // namespace hearth::e2e
