// SPDX-License-Identifier: Apache-2.0
// The binary as a user meets it, on the model of the repository. Golden values are those of transformers in
// models/fable-13m/golden.json.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/process.h"

namespace hearth::e2e {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const char* const kModel = "models/fable-13m";

json golden() {
  std::ifstream file(std::string(kModel) + "/golden.json");
  return json::parse(file);
}

json run_json(std::vector<std::string> args) {
  args.insert(args.end(), {"--json", "--quiet"});
  const ProcessResult result = run_hearth(args);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  json parsed = json::parse(result.out, nullptr, false);
  EXPECT_FALSE(parsed.is_discarded()) << result.out;
  return parsed;
}

std::string write_temporary(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "hearth_e2e_" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(Generate, GreedyTextsEqualTransformers) {
  const json expected = golden();
  ASSERT_EQ(expected["prompts"].size(), 6u);
  for (const json& prompt : expected["prompts"]) {
    SCOPED_TRACE(prompt["text"].get<std::string>());
    const json result = run_json(
        {"generate", kModel, "--prompt", prompt["text"], "--temperature", "0", "--max-tokens", "48", "--ignore-eos"});
    EXPECT_EQ(result["prompt_token_ids"], prompt["ids"]);
    EXPECT_EQ(result["choices"][0]["token_ids"], prompt["greedy48_ids"]);
    EXPECT_EQ(result["choices"][0]["text"], prompt["greedy48_text"]);
    EXPECT_EQ(result["choices"][0]["finish_reason"], "length");
  }
}

TEST(Generate, StreamsTheTextAndSaysHowFast) {
  const json prompt = golden()["prompts"][0];
  const ProcessResult result = run_hearth({"generate", kModel, "--prompt", prompt["text"], "--temperature", "0",
                                           "--echo", "--max-tokens", "48", "--ignore-eos", "--seed", "5"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, prompt["text"].get<std::string>() + prompt["greedy48_text"].get<std::string>() + "\n");
  EXPECT_THAT(result.err, HasSubstr("17 prompt tokens"));
  EXPECT_THAT(result.err, HasSubstr("48 tokens written"));
  EXPECT_THAT(result.err, HasSubstr("first token after"));
  EXPECT_THAT(result.err, HasSubstr("seed 5"));
}

TEST(Generate, ReadsThePromptFromFileAndStandardInput) {
  const json prompt = golden()["prompts"][1];
  const std::string text = prompt["text"].get<std::string>() + "\n";
  const std::string path = write_temporary("prompt.txt", text);
  const std::vector<std::string> args = {"generate", kModel, "--temperature", "0", "--max-tokens",
                                         "8",        "-q",   "--prompt-file"};
  std::vector<std::string> from_file = args, from_stdin = args;
  from_file.push_back(path);
  from_stdin.push_back("-");
  const ProcessResult file = run_hearth(from_file), in = run_hearth(from_stdin, {.stdin_text = text});
  EXPECT_EQ(file.out, " I had a letter from him, and\n");
  EXPECT_EQ(in.out, file.out);
  EXPECT_EQ(in.err, "");
}

TEST(Generate, ASeedRepeatsATextAndChoicesDiffer) {
  const auto texts = [](const char* seed, const char* n) {
    const json result = run_json({"generate", kModel, "--prompt", "The captain", "--temperature", "1", "--max-tokens",
                                  "24", "--seed", seed, "--n", n});
    std::vector<std::string> list;
    for (const json& choice : result["choices"]) list.push_back(choice["text"]);
    return list;
  };
  const auto three = texts("11", "3");
  ASSERT_EQ(three.size(), 3u);
  EXPECT_NE(three[0], three[1]);
  EXPECT_NE(three[1], three[2]);
  EXPECT_THAT(texts("11", "1"), ElementsAre(three[0]));
  EXPECT_THAT(texts("12", "1"), Not(ElementsAre(three[0])));
}

TEST(Generate, SamplesAsTheModelsGenerationConfigSays) {
  const std::vector<std::string> base = {"generate", kModel, "--prompt", "a", "--max-tokens", "1"};
  const auto sampling = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return run_json(more)["sampling"];
  };
  EXPECT_FLOAT_EQ(sampling({})["temperature"].get<float>(), 0.8f);
  EXPECT_FLOAT_EQ(sampling({})["top_p"].get<float>(), 0.95f);
  EXPECT_FLOAT_EQ(sampling({"--top-p", "0.5"})["top_p"].get<float>(), 0.5f);
  EXPECT_FLOAT_EQ(sampling({"--generation-config", "none"})["temperature"].get<float>(), 1.0f);
}

TEST(Generate, EndsAtStopTextsTokensAndLimits) {
  const auto choice = [](std::vector<std::string> more) {
    std::vector<std::string> args = {"generate",      kModel, "--prompt",     "Call me Ishmael. Some years ago",
                                     "--temperature", "0",    "--max-tokens", "30"};
    args.insert(args.end(), more.begin(), more.end());
    return run_json(args)["choices"][0];
  };
  const json stop = choice({"--stop", "nothing like it", "--stop", "from him"});
  EXPECT_EQ(stop["text"], " I had a letter ");
  EXPECT_EQ(stop["finish_reason"], "stop");
  EXPECT_EQ(stop["stop_reason"], "from him");
  EXPECT_EQ(choice({"--stop", "from him", "--include-stop-str-in-output"})["text"], " I had a letter from him");
  const json ids = choice({})["token_ids"];
  const json token = choice({"--stop-token-ids", ids[3].dump()});
  EXPECT_EQ(token["token_ids"].size(), 4u);
  EXPECT_EQ(token["stop_reason"], ids[3]);
  const json later = choice({"--stop-token-ids", ids[3].dump(), "--min-tokens", "6"});
  EXPECT_GE(later["token_ids"].size(), 6u);
  EXPECT_NE(later["token_ids"][3], ids[3]);
  const json forbidden = choice({"--logit-bias", ids[0].dump() + "=-100"});
  EXPECT_NE(forbidden["token_ids"][0], ids[0]);
}

TEST(Generate, ReportsLogProbabilities) {
  const json prompt = golden()["prompts"][0];
  const json result = run_json(
      {"generate", kModel, "--prompt", prompt["text"], "--temperature", "0", "--max-tokens", "3", "--logprobs", "20"});
  const json& first = result["choices"][0]["logprobs"][0];
  ASSERT_EQ(first["top"].size(), 20u);
  EXPECT_EQ(first["token_id"], prompt["greedy48_ids"][0]);
  EXPECT_EQ(first["logprob"], first["top"][0]["logprob"]);
  // Differences of log probabilities are differences of logits.
  const auto logit = [&](size_t i) { return prompt["last_top20_logits"][i].get<double>(); };
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(first["top"][i]["token_id"], prompt["last_top20_ids"][i]);
    EXPECT_NEAR(first["top"][i]["logprob"].get<double>() - first["logprob"].get<double>(), logit(i) - logit(0), 2e-4);
  }
}

TEST(Generate, CtrlCEndsTheTextCleanly) {
  const ProcessResult result =
      run_hearth({"generate", kModel, "--prompt", "It was", "--max-tokens", "1000", "--ignore-eos"},
                 {.interrupt_after_bytes = 10});
  EXPECT_EQ(result.exit_code, 130) << "signal " << result.signal;
  EXPECT_GT(result.out.size(), 10u);
  EXPECT_EQ(result.out.back(), '\n');
  EXPECT_THAT(result.err, HasSubstr("cancelled"));
  EXPECT_THAT(result.err, Not(HasSubstr("error")));
}

TEST(Generate, AFullDiskIsAnError) {
  const ProcessResult result =
      run_hearth({"generate", kModel, "--prompt", "It was", "--max-tokens", "4", "-q"}, {.stdout_path = "/dev/full"});
  EXPECT_EQ(result.exit_code, 8);
  EXPECT_EQ(result.err, "hearth: error: cannot write to standard output: No space left on device\n");
}

TEST(Generate, Bf16AndTheReferenceBackendRun) {
  const json prompt = golden()["prompts"][0];
  const auto first = [&](const char* flag, const char* value) {
    return run_json({"generate", kModel, "--prompt", prompt["text"], "--temperature", "0", "--max-tokens", "4", flag,
                     value})["choices"][0]["token_ids"][0];
  };
  EXPECT_EQ(first("--device", "ref"), prompt["greedy48_ids"][0]);
  EXPECT_EQ(first("--dtype", "bf16"), prompt["greedy48_ids"][0]);
  EXPECT_EQ(first("--kv-cache-dtype", "bf16"), prompt["greedy48_ids"][0]);
}

TEST(Chat, KeepsADialogueOverAPipe) {
  const auto chat = [](const std::string& input, std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"chat", kModel, "--temperature", "0", "--max-tokens", "12"};
    args.insert(args.end(), more.begin(), more.end());
    return run_hearth(args, {.stdin_text = input});
  };
  const ProcessResult one = chat("Tell me of the sea.\n");
  EXPECT_EQ(one.exit_code, 0) << one.err;
  EXPECT_FALSE(one.out.empty());
  EXPECT_THAT(one.err, Not(HasSubstr("error")));
  // The same question after /reset gets the same answer, from the kept part of the context.
  const ProcessResult twice = chat("Tell me of the sea.\n/reset\nTell me of the sea.\n/exit\nnever read\n");
  EXPECT_EQ(twice.exit_code, 0);
  EXPECT_EQ(twice.out, one.out + one.out);
  EXPECT_THAT(twice.err, HasSubstr("(1 prompt token ("));
  // A second turn feeds only what is new.
  const ProcessResult turns = chat("Tell me of the sea.\nAnd then?\n");
  EXPECT_THAT(turns.out, testing::StartsWith(one.out));
  const ProcessResult system = chat("/system You are a sailor.\nTell me of the sea.\n/system\n/hepl\n");
  const ProcessResult flag = chat("Tell me of the sea.\n", {"--system-prompt", "You are a sailor."});
  EXPECT_EQ(system.out, flag.out);
  EXPECT_THAT(system.err, HasSubstr("system prompt: You are a sailor."));
  EXPECT_THAT(system.err, HasSubstr("unknown command /hepl, did you mean /help?"));
}

TEST(Chat, SaysWhenTheContextIsFull) {
  const ProcessResult result = run_hearth({"chat", kModel, "--max-model-len", "16"},
                                          {.stdin_text = "one two three four five six seven eight nine\n"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("the context holds 16"));
}

TEST(Eval, PerplexityEqualsTheGoldenLogProbabilities) {
  const json prompt = golden()["prompts"][5];
  const size_t ids = prompt["ids"].size();
  double nll = 0;
  for (size_t i = ids - prompt["token_logprobs"].size(); i < ids; ++i) {
    const json& value = prompt["token_logprobs"][i];
    nll -= value.is_null() ? 0.0 : value.get<double>();
  }
  const std::string text = write_temporary("ppl.txt", prompt["text"]);
  const std::string results = testing::TempDir() + "hearth_e2e_results.jsonl";
  std::remove(results.c_str());
  const json result =
      run_json({"eval", "ppl", kModel, "--text", text, "--ctx", std::to_string(ids - 1), "--results", results});
  EXPECT_EQ(result["tokens"], ids - 1);
  EXPECT_NEAR(result["nll_per_token"].get<double>(), nll / static_cast<double>(ids - 1), 2e-5);
  EXPECT_NEAR(result["ppl"].get<double>(), std::exp(result["nll_per_token"].get<double>()), 1e-9);
  std::ifstream file(results);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const json kept = json::parse(line);
  EXPECT_EQ(kept["bench"], "eval.quality");
  EXPECT_EQ(kept["model"], "fable-13m");
  EXPECT_EQ(kept["ppl"], result["ppl"]);
  EXPECT_THAT(kept["command"].get<std::string>(), HasSubstr("eval ppl models/fable-13m"));
}

TEST(Eval, LambadaCountsWholeWords) {
  // What the model says itself counts, another word does not.
  const std::string data = write_temporary(
      "lambada.jsonl",
      "{\"context\":\"Call me Ishmael. Some years ago I had a letter from\",\"continuation\":\"him\"}\n"
      "{\"context\":\"Call me Ishmael. Some years ago I had a letter from\",\"continuation\":\"Constantinople\"}\n");
  const std::string items = write_temporary("lambada_items.jsonl", "to be replaced");
  const json result = run_json({"eval", "lambada", kModel, "--data", data, "--items", items});
  EXPECT_EQ(result["n"], 2);
  EXPECT_EQ(result["correct"], 1);
  EXPECT_EQ(result["lambada_acc"], 0.5);
  std::ifstream file(items);
  std::string line;
  double logprob = 0;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(std::getline(file, line)) << "line " << i;
    const json item = json::parse(line);
    EXPECT_EQ(item["item"], i);
    EXPECT_EQ(item["hit"], i == 0);
    EXPECT_EQ(item["context"].front(), 0) << "the first id is that of BOS";
    EXPECT_FALSE(item["continuation"].empty());
    logprob += item["logprob"].get<double>();
  }
  EXPECT_FALSE(std::getline(file, line));
  EXPECT_NEAR(-logprob / 2, result["nll_per_word"].get<double>(), 1e-9);
}

TEST(Eval, KlIsZeroAgainstItself) {
  const std::string text = write_temporary("kl.txt", golden()["prompts"][5]["text"].get<std::string>());
  const json same = run_json({"eval", "kl", kModel, "--against", kModel, "--text", text, "--ctx", "16"});
  EXPECT_EQ(same["kl"], 0.0);
  EXPECT_EQ(same["same_top"], 1.0);
  EXPECT_EQ(same["windows"], 2);
  const json rounded =
      run_json({"eval", "kl", kModel, "--against", kModel, "--text", text, "--ctx", "16", "--dtype", "bf16"});
  EXPECT_GT(rounded["kl"].get<double>(), 0.0);
  EXPECT_LT(rounded["kl"].get<double>(), 0.01);
  const json both = run_json({"eval", "kl", kModel, "--against", kModel, "--text", text, "--ctx", "16", "--dtype",
                              "bf16", "--against-dtype", "bf16"});
  EXPECT_EQ(both["kl"], 0.0);
  const json in_double =
      run_json({"eval", "kl", kModel, "--against", kModel, "--text", text, "--ctx", "16", "--against-device", "ref"});
  EXPECT_EQ(in_double["against_backend"], "ref");
  EXPECT_NE(in_double["nll_per_token"], in_double["nll_per_token_against"]);
  EXPECT_LT(in_double["kl"].get<double>(), 1e-6);
}

TEST(Inspect, DescribesTheModel) {
  const json report = run_hearth({"inspect", kModel, "--tensors", "--json"}).out.empty()
                          ? json()
                          : json::parse(run_hearth({"inspect", kModel, "--tensors", "--json"}).out);
  EXPECT_EQ(report["architecture"], "LlamaForCausalLM");
  EXPECT_EQ(report["supported"], true);
  EXPECT_EQ(report["layers"], 6);
  EXPECT_EQ(report["context"], 1024);
  EXPECT_EQ(report["parameters"], 12587904);
  // 6 layers x (K and V) x 2 heads x 64 channels x 2 bytes
  EXPECT_EQ(report["kv_bytes_per_token"]["bf16"], 6 * 2 * 2 * 64 * 2);
  EXPECT_EQ(report["tokenizer"]["bos_id"], 0);
  EXPECT_EQ(report["chat_template"], true);
  EXPECT_EQ(report["tensors"].size(), 56u);
  const ProcessResult people = run_hearth({"inspect", kModel, "--tensors"});
  EXPECT_EQ(people.exit_code, 0);
  EXPECT_THAT(people.out, HasSubstr("model.embed_tokens.weight"));
  EXPECT_THAT(people.out, HasSubstr("chat template     yes"));
}

TEST(Version, SaysWhatThisIs) {
  const ProcessResult result = run_hearth({"version"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, testing::ContainsRegex("^hearth [0-9]+\\.[0-9]+\\.[0-9]+ \\("));
  EXPECT_THAT(result.out, HasSubstr("instruction set   "));
  const json parsed = json::parse(run_hearth({"version", "--json"}).out);
  EXPECT_GE(parsed["threads"].get<int>(), 1);
  EXPECT_EQ(parsed["backends"], json({"cpu", "ref"}));
}

// What is given to others does not say where it was built.
TEST(Version, TheBinaryHoldsNoPathOfTheBuildMachine) {
  std::ifstream file(HEARTH_BINARY, std::ios::binary);
  const std::string binary(std::istreambuf_iterator<char>(file), {});
  ASSERT_THAT(binary, HasSubstr("hearth/checkpoint/"));  // messages of our own bugs name the file
  for (const std::string& folder :
       {fs::current_path().string(), std::string(std::getenv("HOME") ? std::getenv("HOME") : "")}) {
    if (folder.size() < 2) continue;
    const size_t at = binary.find(folder + "/");
    EXPECT_EQ(at, std::string::npos) << binary.substr(at, 120);
  }
}

TEST(Help, EveryCommandHasOne) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{},
                                                  {"generate"},
                                                  {"chat"},
                                                  {"serve"},
                                                  {"bench"},
                                                  {"bench", "model"},
                                                  {"bench", "ops"},
                                                  {"bench", "serve"},
                                                  {"eval"},
                                                  {"eval", "ppl"},
                                                  {"eval", "lambada"},
                                                  {"eval", "kl"},
                                                  {"inspect"},
                                                  {"version"}}) {
    std::vector<std::string> args = command;
    args.push_back("--help");
    const ProcessResult result = run_hearth(args);
    std::string usage = "Usage: hearth";
    for (const std::string& word : command) usage += " " + word;
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.err, "");
    EXPECT_THAT(result.out, HasSubstr(usage));
  }
  EXPECT_EQ(run_hearth({}).exit_code, 0);
}

// fable-13m with a channel of layer 0's first norm at 256.
fs::path with_outlier(const fs::path& dir) {
  fs::remove_all(dir);
  fs::copy(kModel, dir);
  fs::permissions(dir / "model.safetensors", fs::perms::owner_write, fs::perm_options::add);
  std::fstream file(dir / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  const auto norm = nlohmann::json::parse(header).at("model.layers.0.input_layernorm.weight");
  EXPECT_EQ(norm.at("dtype"), "BF16");
  file.seekp(static_cast<std::streamoff>(8 + header_bytes + norm.at("data_offsets")[0].get<uint64_t>() + 2 * 7));
  file.write("\x80\x43", 2);
  return dir;
}

// An absent flag is neither --awq nor --no-awq: with GPTQ inputs with outliers have their scales searched.
TEST(Quantize, ScalesInputsWithOutliersUnlessToldNotTo) {
  const std::string base = testing::TempDir() + "hearth_e2e_awq_";
  const fs::path model = with_outlier(base + "model");
  std::vector<std::string> shards;
  for (const char* flag : {"", "--awq", "--no-awq"}) {
    const fs::path out = base + (*flag != 0 ? flag + 2 : "default");
    fs::remove_all(out);
    std::vector<std::string> args = {"quantize",
                                     model.string(),
                                     "--to",
                                     "int4",
                                     "--calibration",
                                     "docs/design/engine.md",
                                     "--samples",
                                     "2",
                                     "--length",
                                     "64",
                                     "--quiet",
                                     "-o",
                                     out.string(),
                                     "--keep",
                                     "layers.1=bf16,layers.2=bf16,layers.3=bf16,layers.4=bf16,layers.5=bf16"};
    if (*flag != 0) args.emplace_back(flag);
    const ProcessResult result = run_hearth(args);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    std::ifstream file(out / "model-00002-of-00008.safetensors", std::ios::binary);  // layer 0
    shards.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    ASSERT_FALSE(shards.back().empty());
    fs::remove_all(out);
  }
  EXPECT_FALSE(shards[0] == shards[2]);
  EXPECT_FALSE(shards[1] == shards[2]);
  fs::remove_all(model);
}

}  // namespace
}  // namespace hearth::e2e
