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
  expect_error(run_hearth({"generate", "/nowhere/model"}), kNotFound, {"/nowhere/model"});
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

TEST_F(BadModel, WeightsThatAreNoNumbers) {
  std::string bytes = read("models/fable-13m/model.safetensors");
  bytes.replace(bytes.size() - 2, 2, "\xC0\x7F");  // a NaN of bf16 as the last element
  write("model.safetensors", bytes);
  expect_error(generate(), kCorrupt, {dir_.string(), "tensor 'model.norm.weight' is nan at [383]", "finite"});
}

// A terminal obeys escape sequences: what files say is shown, never sent.
TEST_F(BadModel, NothingThatAFileSaysReachesTheTerminalRaw) {
  const std::string evil =
      "\x1b]0;owned\x07\xc2\x9b"
      "31m\x7f";
  const auto expect_plain = [](const ProcessResult& result, int exit_code) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    for (const std::string* text : {&result.out, &result.err})
      for (const char* bad : {"\x1b", "\x07", "\xc2\x9b", "\x7f"})
        EXPECT_EQ(text->find(bad), std::string::npos) << *text;
    EXPECT_THAT(result.out + result.err, HasSubstr("owned"));
  };
  set("architectures", {evil});
  expect_plain(generate(), kUnsupported);
  expect_plain(run_hearth({"inspect", dir_.string()}), 0);
  set("model_type", evil);
  expect_plain(generate(), kUnsupported);
  set("torch_dtype", evil);  // not a field that hearth knows
  EXPECT_EQ(generate().exit_code, 0);
  set("hidden_act", evil);
  expect_plain(generate(), kUnsupported);
  set("rope_scaling", {{"rope_type", evil}, {"factor", 4.0}});
  expect_plain(generate(), kUnsupported);
  set("rope_scaling", {{evil, json::object()}});
  expect_plain(generate(), kUnsupported);
  set("vocab_size", evil);
  expect_plain(generate(), kWrongInput);
  set("hidden_size", 384);
  write("generation_config.json", json{{"top_p", evil}}.dump());
  expect_plain(generate(), kCorrupt);
  write("generation_config.json", "{}");
  json tokenizer = json::parse(read("models/fable-13m/tokenizer.json"));
  const json whole = tokenizer;
  tokenizer["model"]["type"] = evil;
  write("tokenizer.json", tokenizer.dump());
  EXPECT_EQ(generate().err.find('\x1b'), std::string::npos);
  write("tokenizer.json", whole.dump());

  // A header of our own: the tensor's name, its type, and the name of the file that should have it.
  const auto with_header = [&](const json& header, size_t data_bytes) {
    const std::string text = header.dump();
    std::string file;
    for (size_t i = 0; i < 8; ++i) file += static_cast<char>(text.size() >> (8 * i) & 0xFF);
    write("model.safetensors", file + text + std::string(data_bytes, '\0'));
  };
  with_header({{evil, {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {0, 8}}}}}, 8);
  expect_plain(generate(), kCorrupt);
  with_header({{"x", {{"dtype", evil}, {"shape", {1}}, {"data_offsets", {0, 8}}}}}, 8);
  expect_plain(generate(), kUnsupported);
  with_header({{evil, {{"dtype", "F32"}, {"shape", {2}}, {"data_offsets", {0, 8}}}}}, 8);
  expect_plain(run_hearth({"inspect", dir_.string(), "--tensors"}), 0);
  fs::remove(weights());
  write("model.safetensors.index.json", json{{"weight_map", {{"x", evil}}}}.dump());
  expect_plain(generate(), kNotFound);
  // A tensor too many, beside all that the model needs.
  std::string bytes = read("models/fable-13m/model.safetensors");
  size_t header_bytes = 0;
  for (size_t i = 8; i-- > 0;) header_bytes = header_bytes << 8 | static_cast<unsigned char>(bytes[i]);
  json header = json::parse(bytes.substr(8, header_bytes));
  const size_t data = bytes.size() - 8 - header_bytes;
  header[evil] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {data, data + 4}}};
  fs::remove(dir_ / "model.safetensors.index.json");
  const std::string text = header.dump();
  std::string file;
  for (size_t i = 0; i < 8; ++i) file += static_cast<char>(text.size() >> (8 * i) & 0xFF);
  write("model.safetensors", file + text + bytes.substr(8 + header_bytes) + std::string(4, '\0'));
  expect_plain(generate(), kUnsupported);
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
  write("generation_config.json", "{\"top_k\": 1.5}");
  expect_error(generate(), kCorrupt, {"top_k", "1.5", "a whole number"});
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
  set("quantization_config", {{"quant_method", "bitsandbytes"}, {"bits", 4}});
  expect_error(generate(), kUnsupported, {"quantization_config", "bitsandbytes", "gptq"});
  set("quantization_config", {{"quant_method", "gptq"}, {"bits", 3}, {"group_size", 128}});
  expect_error(generate(), kUnsupported, {"quantization_config", "3 bits", "4"});
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
  const ProcessResult broken = run_hearth({"chat", dir_.string(), "-q"});
  expect_error(broken, kWrongInput, {"chat template"});
  EXPECT_EQ(broken.err.find("chat template: chat template"), std::string::npos) << broken.err;
}

// A message that the template or the model refuses is left out; the dialogue goes on.
TEST_F(BadModel, ChatGoesOnAfterAMessageThatIsRefused) {
  json config = json::parse(read("models/fable-13m/tokenizer_config.json"));
  config["chat_template"] =
      "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no such word') }}{% endif %}"
      "{{ m.content }} {% endfor %}";
  write("tokenizer_config.json", config.dump());
  json tokenizer = json::parse(read("models/fable-13m/tokenizer.json"));
  json extra = tokenizer["added_tokens"].back();
  extra["id"] = 8192;  // the first one that the model does not have
  extra["content"] = "<beyond>";
  tokenizer["added_tokens"].push_back(extra);
  write("tokenizer.json", tokenizer.dump());
  const ProcessResult result = run_hearth({"chat", dir_.string(), "-q", "--max-tokens", "2", "--temperature", "0"},
                                          {.stdin_text = "bad\n<beyond>\nIt was\n"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("no such word"));
  EXPECT_EQ(result.err.find("chat template: chat template"), std::string::npos) << result.err;
  EXPECT_THAT(result.err, HasSubstr("token 8192 and the model's vocabulary has 8192; the message was left out"));
  EXPECT_GT(result.out.size(), 1u) << result.err;  // the answer to the third message
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
  // And not read to an end that it may not have.
  expect_error(generate({"--prompt-file", "/dev/zero"}), kWrongInput, {"the prompt has", "1024 tokens", "65536"});
  const std::string file = testing::TempDir() + "hearth_e2e_long_prompt.txt";
  std::ofstream(file) << std::string(65537, 'a') << '\n';
  expect_error(generate({"--prompt-file", file}), kWrongInput, {"65537 bytes", "1024 tokens", "65536"});
  std::ofstream(file) << std::string(65536, 'a') << '\n';  // may fit by its bytes: the tokens decide
  expect_error(generate({"--prompt-file", file}), kWrongInput, {"the prompt has", "tokens; the context"});
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
  expect_error(with({"--max-tokens", "0"}), kWrongInput, {"--max-tokens", "0", "1 to 2147483648 tokens"});
  expect_error(with({"--max-tokens", "2147483649"}), kWrongInput, {"2147483649", "1 to 2147483648 tokens"});
  expect_error(with({"--seed", "9007199254740992"}), kWrongInput, {"0 to 9007199254740991"});
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
