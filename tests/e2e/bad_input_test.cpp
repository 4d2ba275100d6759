// SPDX-License-Identifier: Apache-2.0
// What a new user does wrong: each gets one line on stderr that names the thing, what was found and what was
// wanted, the exit code of its kind, and nothing on stdout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

constexpr int kWrongInput = 2, kNotFound = 3, kCorrupt = 4, kUnsupported = 5, kUnavailable = 8;

// A copy of the repository's model that a test may break.
class BadModel : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           (std::string("hearth_e2e_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
      fs::copy_file(fs::path("models/fable-13m") / name, dir_ / name);
    fs::create_symlink(fs::absolute("models/fable-13m/model.safetensors"), weights());
  }
  void TearDown() override { fs::remove_all(dir_); }

  fs::path weights() const { return dir_ / "model.safetensors"; }
  void write(const std::string& name, const std::string& text) const {
    fs::remove(dir_ / name);
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }
  std::string read(const fs::path& path) const {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // config.json with one field changed.
  void set(const std::string& field, const json& value) const {
    json config = json::parse(read("models/fable-13m/config.json"));
    config[field] = value;
    write("config.json", config.dump());
  }
  ProcessResult generate(std::vector<std::string> more = {}) const {
    std::vector<std::string> args = {"generate", dir_.string(), "--prompt", "It was", "--max-tokens", "2", "--quiet"};
    args.insert(args.end(), more.begin(), more.end());
    return run_hearth(args);
  }

  fs::path dir_;
};

// One line `hearth: error: ...` with all of `parts`.
void expect_error(const ProcessResult& result, int exit_code, std::initializer_list<std::string> parts) {
  EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, testing::StartsWith("hearth: error: "));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
}

ProcessResult generate(std::vector<std::string> more) {
  more.insert(more.begin(), {"generate", "models/fable-13m", "--quiet"});
  return run_hearth(more);
}

TEST_F(BadModel, TheCopyItselfWorks) {
  const ProcessResult result = generate();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out, "");
}

TEST_F(BadModel, MissingFolderAndFiles) {
  expect_error(run_hearth({"generate", "/nowhere/model", "--prompt", "a", "-q"}), kNotFound, {"/nowhere/model"});
  expect_error(
      run_hearth({"generate", "org/model", "--prompt", "a", "-q"}, {.environment = {{"HF_HUB_CACHE", dir_.string()}}}),
      kNotFound, {"org/model"});
  fs::remove(dir_ / "tokenizer.json");
  expect_error(generate(), kNotFound, {"tokenizer.json"});
  fs::remove(weights());
  expect_error(generate(), kNotFound, {"model.safetensors"});
  fs::remove(dir_ / "config.json");
  expect_error(generate(), kNotFound, {"config.json"});
}

TEST_F(BadModel, TruncatedWeights) {
  std::string bytes = read("models/fable-13m/model.safetensors");
  const size_t whole = bytes.size();
  bytes.resize(whole - 1000);
  write("model.safetensors", bytes);
  expect_error(generate(), kCorrupt, {"model.safetensors"});
  write("model.safetensors", bytes.substr(0, 100));
  expect_error(generate(), kCorrupt, {"model.safetensors"});
  write("model.safetensors", "");
  expect_error(generate(), kCorrupt, {"model.safetensors"});
}

TEST_F(BadModel, WrongJson) {
  write("config.json", "{\"hidden_size\": 384,");
  expect_error(generate(), kCorrupt, {"config.json"});
  write("config.json", "[1, 2]");
  expect_error(generate(), kCorrupt, {"config.json"});
  set("hidden_size", 384);
  write("generation_config.json", "{\"temperature\": \"hot\"}");
  expect_error(generate(), kCorrupt, {"generation_config.json", "temperature", "\"hot\""});
  write("generation_config.json", "{\"temperature\": -1}");
  expect_error(generate(), kWrongInput, {"temperature", "-1"});
  write("generation_config.json", "{}");
  write("tokenizer.json", "{\"model\": 3}");
  expect_error(generate(), kCorrupt, {"tokenizer.json"});
}

TEST_F(BadModel, UnknownArchitectureAndFieldValues) {
  set("architectures", {"FooForCausalLM"});
  expect_error(generate(), kUnsupported, {"FooForCausalLM", "LlamaForCausalLM"});
  set("hidden_act", "gelu");
  expect_error(generate(), kUnsupported, {"hidden_act", "gelu", "silu"});
  set("rope_scaling", {{"rope_type", "longrope"}, {"factor", 4.0}});
  expect_error(generate(), kUnsupported, {"longrope"});
  set("quantization_config", {{"quant_method", "gptq"}});
  expect_error(generate(), kUnsupported, {"quantization_config"});
  set("num_attention_heads", "six");
  expect_error(generate(), kWrongInput, {"num_attention_heads", "six"});
  set("num_key_value_heads", 4);
  expect_error(generate(), kWrongInput, {"config.json", "6 attention heads", "4 key-value heads"});
  set("hidden_size", -384);
  expect_error(generate(), kWrongInput, {"hidden_size", "-384"});
}

TEST_F(BadModel, WeightsThatDoNotFitTheConfiguration) {
  set("intermediate_size", 1000);
  expect_error(generate(), kWrongInput, {dir_.string(), "model.layers.0.mlp", "1000", "1024"});
  set("num_hidden_layers", 7);
  expect_error(generate(), kNotFound, {dir_.string(), "model.layers.6."});
}

TEST_F(BadModel, InspectSaysWhatItCan) {
  set("architectures", {"FooForCausalLM"});
  const ProcessResult result = run_hearth({"inspect", dir_.string()});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("FooForCausalLM"));
  EXPECT_THAT(result.out, HasSubstr("supported         no: "));
  EXPECT_THAT(result.out, HasSubstr("12587904"));
  const json report = json::parse(run_hearth({"inspect", dir_.string(), "--json"}).out);
  EXPECT_EQ(report["supported"], false);
  EXPECT_THAT(report["reason"].get<std::string>(), HasSubstr("FooForCausalLM"));
  write("model.safetensors", "short");
  const ProcessResult broken = run_hearth({"inspect", dir_.string()});
  EXPECT_EQ(broken.exit_code, kCorrupt);
  EXPECT_THAT(broken.out, HasSubstr("FooForCausalLM"));
  EXPECT_THAT(broken.err, HasSubstr("model.safetensors"));
}

TEST_F(BadModel, ChatWithoutATemplate) {
  json config = json::parse(read("models/fable-13m/tokenizer_config.json"));
  config.erase("chat_template");
  write("tokenizer_config.json", config.dump());
  expect_error(run_hearth({"chat", dir_.string(), "-q"}), kWrongInput, {"chat template", "hearth generate"});
  config["chat_template"] = "{% if %}";
  write("tokenizer_config.json", config.dump());
  expect_error(run_hearth({"chat", dir_.string(), "-q"}), kWrongInput, {"chat template"});
}

TEST_F(BadModel, KlNeedsOneVocabulary) {
  json tokenizer = json::parse(read("models/fable-13m/tokenizer.json"));
  tokenizer["pre_tokenizer"] = nullptr;
  write("tokenizer.json", tokenizer.dump());
  const std::string text = (dir_ / "text.txt").string();
  std::ofstream(text) << "It was a bright morning, and the old captain walked to the sea.";
  expect_error(
      run_hearth({"eval", "kl", "models/fable-13m", "--against", dir_.string(), "--text", text, "--ctx", "4", "-q"}),
      kWrongInput, {"tokenizer"});
}

TEST(BadPrompt, TooLong) {
  std::string text;
  for (int i = 0; i < 1100; ++i) text += "a ";
  expect_error(generate({"--prompt", text}), kWrongInput, {"the prompt has", "--max-model-len", "1024"});
  expect_error(generate({"--prompt", "a", "--max-tokens", "1024"}), kWrongInput, {"2 tokens", "1024"});
  expect_error(generate({"--prompt", "a b c d", "--max-model-len", "4"}), kWrongInput, {"--max-model-len", "4"});
  expect_error(generate({"--prompt", "a", "--max-model-len", "5000"}), kWrongInput, {"5000", "1024"});
  // Refused before it is tokenized: 1,024 tokens of 64 bytes.
  expect_error(generate({"--prompt", std::string(65600, 'a')}), kWrongInput, {"65600 bytes", "1024 tokens", "65536"});
}

TEST(BadPrompt, MissingEmptyOrNoText) {
  expect_error(generate({}), kWrongInput, {"no prompt", "--prompt TEXT"});
  expect_error(generate({"--prompt", "", "--no-special-tokens"}), kWrongInput, {"no tokens"});
  expect_error(generate({"--prompt", "\xFF\xFE"}), kWrongInput, {"prompt", "UTF-8"});
  expect_error(generate({"--prompt-file", "/nowhere.txt"}), kNotFound, {"--prompt-file", "/nowhere.txt"});
  expect_error(generate({"--prompt-file", "/"}), kWrongInput, {"is a folder"});
  expect_error(generate({"--prompt", "a", "--prompt-file", "b"}), kWrongInput, {"both given"});
  // A beginning-of-text token is a prompt.
  EXPECT_EQ(generate({"--prompt", "", "--max-tokens", "2"}).exit_code, 0);
}

TEST(BadFlag, ValuesAndNames) {
  const auto with = [](std::vector<std::string> more) {
    more.insert(more.end(), {"--prompt", "a"});
    return generate(more);
  };
  expect_error(with({"--temperature", "-1"}), kWrongInput, {"--temperature", "-1", "0 to 1000"});
  expect_error(with({"--temperature", "hot"}), kWrongInput, {"--temperature", "'hot'"});
  expect_error(with({"--top-p", "1.5"}), kWrongInput, {"--top-p", "1.5"});
  expect_error(with({"--top-k", "-2"}), kWrongInput, {"--top-k", "-2"});
  expect_error(with({"--max-tokens", "0"}), kWrongInput, {"--max-tokens", "0", "at least 1"});
  expect_error(with({"--max-tokens", "ten"}), kWrongInput, {"--max-tokens", "'ten' is not a whole number"});
  expect_error(with({"--seed", "-3"}), kWrongInput, {"--seed", "-3"});
  expect_error(with({"--dtype", "fp8"}), kWrongInput, {"--dtype", "'fp8'", "bf16"});
  expect_error(with({"--device", "tpu"}), kWrongInput, {"--device", "'tpu'", "cpu"});
  expect_error(with({"--stop", ""}), kWrongInput, {"--stop", "empty"});
  expect_error(with({"--stop-token-ids", "8192"}), kWrongInput, {"--stop-token-ids", "8192"});
  expect_error(with({"--logit-bias", "5"}), kWrongInput, {"--logit-bias", "ID=BIAS"});
  expect_error(with({"--logprobs", "3"}), kWrongInput, {"--logprobs", "--json"});
  expect_error(with({"--max-token", "3"}), kWrongInput, {"--max-token;", "did you mean --max-tokens?"});
  expect_error(with({"another"}), kWrongInput, {"'another'"});
  expect_error(run_hearth({"generate"}), kWrongInput, {"MODEL"});
  expect_error(run_hearth({"genrate", "x"}), kWrongInput, {"'genrate'", "did you mean generate?"});
  expect_error(run_hearth({"--log-level", "loud", "version"}), kWrongInput, {"loud"});
  expect_error(run_hearth({"version"}, {.environment = {{"HEARTH_LOG_LEVEL", "loud"}}}), kWrongInput, {"loud"});
}

TEST(BadEval, FilesWindowsAndOutput) {
  const std::string text = testing::TempDir() + "hearth_e2e_bad_eval.txt";
  std::ofstream(text) << "It was a bright morning, and the old captain walked to the sea and back again.";
  const auto ppl = [&](std::vector<std::string> more) {
    std::vector<std::string> args = {"eval", "ppl", "models/fable-13m", "-q"};
    args.insert(args.end(), more.begin(), more.end());
    return run_hearth(args);
  };
  expect_error(ppl({}), kWrongInput, {"--text"});
  expect_error(ppl({"--text", "/nowhere.txt"}), kNotFound, {"--text", "/nowhere.txt"});
  expect_error(ppl({"--text", text}), kWrongInput, {"one window needs 1025"});
  expect_error(ppl({"--text", text, "--ctx", "2000"}), kWrongInput, {"--ctx 2000", "1024"});
  expect_error(ppl({"--text", text, "--ctx", "4", "--windows", "0-99"}), kWrongInput, {"--windows", "'0-99'"});
  expect_error(ppl({"--text", text, "--ctx", "4", "--windows", "x"}), kWrongInput, {"--windows", "'x'"});
  expect_error(ppl({"--text", text, "--ctx", "4", "--windows", "@/nowhere"}), kNotFound, {"--windows", "/nowhere"});
  expect_error(ppl({"--text", text, "--ctx", "4", "--results", "/nowhere/r.jsonl"}), kUnavailable,
               {"/nowhere/r.jsonl"});
  expect_error(run_hearth({"eval", "lambada", "models/fable-13m", "-q", "--data", text}), kCorrupt, {text, "line 1"});
  expect_error(
      run_hearth({"eval", "kl", "models/fable-13m", "-q", "--text", text, "--ctx", "4", "--against", "/nowhere"}),
      kNotFound, {"--against", "/nowhere"});
  expect_error(run_hearth({"eval", "plp"}), kWrongInput, {"'plp'", "did you mean ppl?"});
}

}  // namespace
}  // namespace hearth::e2e
