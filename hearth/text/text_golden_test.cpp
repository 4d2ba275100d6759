// SPDX-License-Identifier: Apache-2.0
// Tokenizer and Detokenizer over the tokenizers of HEARTH_DATA (Llama-2, Phi-3, Falcon), against golden values from
// Hugging Face tokenizers.
#include "hearth/text/golden_util.h"

namespace hearth {
namespace {

using namespace text_test;

class TextGoldenTest : public testing::Test {
 protected:
  void SetUp() override {
    if (data_tokenizers().empty()) GTEST_SKIP() << "HEARTH_DATA is not set";
  }
};

TEST_F(TextGoldenTest, TokenizersAgreeWithGolden) {
  const Json goldens = other_goldens();
  ASSERT_EQ(goldens.size(), 3u);
  for (const Json& golden : goldens) {
    SCOPED_TRACE(golden.at("tokenizer"));
    const Tokenizer tokenizer = load_other(golden);
    expect_golden(tokenizer, golden);
    expect_streams_as_decoded(tokenizer, golden);
  }
}

TEST_F(TextGoldenTest, ByteFallbackBytes) {
  const Tokenizer tokenizer = load_other(other_goldens()[0]);
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.token_to_id("<0x0A>").value()), "\n");
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.token_to_id("<0xE4>").value()), "\xe4");
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.token_to_id("▁the").value()), " the");
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.model_max_length(), std::nullopt);
  // Spelled by hand with `normalized`, and still skipped.
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a").value()).value(), "a");
}

}  // namespace
}  // namespace hearth
