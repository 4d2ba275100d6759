// SPDX-License-Identifier: Apache-2.0
// hearth generate: continues a text.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "hearth/cli/commands.h"
#include "hearth/cli/generation.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"

namespace hearth {
namespace {

constexpr int64_t kDefaultMaxTokens = 128;
constexpr const char* kExamples =
    "Examples:\n"
    "  hearth generate models/fable-13m --prompt \"It was a bright morning\" --max-tokens 200\n"
    "  hearth generate models/fable-13m --prompt-file - --temperature 0 --json < prompt.txt\n"
    "\n"
    "The text goes to standard output as it is written; speed and seed go to standard error. Sampling settings that\n"
    "are not given are those of the model's generation_config.json. Ctrl-C ends the text; what was written stays.\n";

struct GenerateSettings {
  ModelSettings model;
  SamplingSettings sampling;
  std::optional<int64_t> max_model_len;
  std::string prompt;
  std::string prompt_file;
  CLI::Option* prompt_option = nullptr;
  int64_t n = 1;
  int64_t logprobs = 0;
  CLI::Option* logprobs_option = nullptr;
  bool no_special_tokens = false;
  bool echo = false;
  bool json = false;
};

constexpr Setting<int64_t> kN{"--n", "N",     1,
                              1024,  "texts", "How many texts to write for the prompt, one after the other."};
constexpr Setting<int64_t> kLogprobs{
    "--logprobs",    "K",      0,
    kMaxTopLogprobs, "tokens", "With --json: the log probability of each token, and the K likeliest beside it."};

// Where the prompt comes from: found before the model is loaded, read once it is known how much can fit.
class PromptSource {
 public:
  static Result<PromptSource> open(const GenerateSettings& s) {
    PromptSource source;
    const bool given = s.prompt_option->count() > 0;
    if (given && !s.prompt_file.empty())
      return invalid_argument("--prompt and --prompt-file are both given; wanted one of them");
    if (!given && s.prompt_file.empty())
      return invalid_argument("no prompt; give --prompt TEXT or --prompt-file FILE (- for standard input)");
    source.text_ = s.prompt;
    if (given) return source;
    source.name_ = s.prompt_file == "-" ? "standard input" : s.prompt_file;
    std::error_code ignored;
    if (s.prompt_file == "-") {
      source.file_ = {stdin, [](std::FILE*) { return 0; }};
    } else if (std::filesystem::is_directory(s.prompt_file, ignored)) {
      return invalid_argument("--prompt-file: {} is a folder; wanted a file", source.name_);
    } else {
      source.file_ = {std::fopen(s.prompt_file.c_str(), "rb"), std::fclose};
    }
    if (source.file_ != nullptr) return source;
    if (errno == ENOENT) return not_found("--prompt-file: {}: no such file", source.name_);
    return unavailable("--prompt-file: cannot open {}: {}", source.name_, std::strerror(errno));
  }

  // The prompt. One that is longer than limit_bytes ends soon after that: what comes may have no end.
  Result<std::string> read(int64_t limit_bytes) {
    if (file_ == nullptr) return std::move(text_);
    char buffer[1 << 16];
    size_t got = 0;
    while (std::ssize(text_) <= limit_bytes + 1 && (got = std::fread(buffer, 1, sizeof buffer, file_.get())) > 0)
      text_.append(buffer, got);
    if (std::ferror(file_.get()) != 0)
      return unavailable("--prompt-file: cannot read {}: {}", name_, std::strerror(errno));
    if (!text_.empty() && text_.back() == '\n') text_.pop_back();
    return std::move(text_);
  }

 private:
  std::string text_;
  std::string name_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_{nullptr, std::fclose};
};

// How many tokens may follow a prompt of `prompt_tokens` in a context of `context`.
Result<int64_t> fit_max_tokens(const std::optional<int64_t>& wanted, int64_t prompt_tokens, int64_t context) {
  const int64_t left = context - prompt_tokens;
  if (left < 1)
    return invalid_argument(
        "the prompt has {} tokens; the context (--max-model-len) holds {}, one of them for the output", prompt_tokens,
        context);
  if (wanted && *wanted > left)
    return invalid_argument(
        "the prompt has {} tokens and --max-tokens wants {} more; the context (--max-model-len) holds {}",
        prompt_tokens, *wanted, context);
  return wanted.value_or(std::min(left, kDefaultMaxTokens));
}

nlohmann::json to_json(const Generation& g, int64_t index, const Tokenizer& tokenizer, bool logprobs) {
  nlohmann::json ids = nlohmann::json::array(), entries = nlohmann::json::array();
  const auto entry = [&](int32_t id, float logprob) {
    return nlohmann::json{{"token_id", id}, {"token", std::string(tokenizer.token_bytes(id))}, {"logprob", logprob}};
  };
  for (const GeneratedToken& token : g.tokens) {
    ids.push_back(token.id);
    if (!logprobs) continue;
    nlohmann::json one = entry(token.id, token.logprob);
    one["top"] = nlohmann::json::array();
    for (const TokenLogprob& top : token.top) one["top"].push_back(entry(top.token, top.logprob));
    entries.push_back(std::move(one));
  }
  nlohmann::json choice = {{"index", index},
                           {"text", g.text},
                           {"token_ids", std::move(ids)},
                           {"finish_reason", finish_reason_name(g.reason)},
                           {"stop_reason", nullptr}};
  if (g.stop_text) choice["stop_reason"] = *g.stop_text;
  if (g.stop_token) choice["stop_reason"] = *g.stop_token;
  if (logprobs) choice["logprobs"] = std::move(entries);
  return choice;
}

nlohmann::json sampling_json(const SamplingParams& p) {
  return {{"temperature", p.temperature},
          {"top_k", p.top_k},
          {"top_p", p.top_p},
          {"min_p", p.min_p},
          {"repetition_penalty", p.repetition_penalty},
          {"presence_penalty", p.presence_penalty},
          {"frequency_penalty", p.frequency_penalty},
          {"seed", p.seed}};
}

// All choices one after the other in one slot: the prompt is computed once.
class GenerateRun {
 public:
  GenerateRun(const GenerateSettings& settings, const ServedModel& model) : settings_(settings), model_(model) {}

  Result<int> run(Runner& runner, GenerationPlan plan, const std::vector<int32_t>& prompt_ids,
                  const std::string& prompt) {
    InterruptGuard interrupt;
    std::vector<int32_t> fed;
    nlohmann::json choices = nlohmann::json::array();
    for (int64_t i = 0; i < settings_.n && !interrupt.interrupted(); ++i) {
      plan.params.choice = static_cast<uint32_t>(i);
      if (!settings_.json && settings_.n > 1)
        HEARTH_TRY(write_stdout(fmt::format("--- {} of {}\n", i + 1, settings_.n)));
      if (!settings_.json && settings_.echo) HEARTH_TRY(write_stdout(prompt));
      const OnText on_text = [&](std::string_view piece) { return settings_.json ? Status() : write_stdout(piece); };
      HEARTH_TRY_ASSIGN(const Generation g,
                        generate(runner, model_.tokenizer, plan, prompt_ids, fed, on_text, interrupt.flag()));
      if (settings_.json) {
        choices.push_back(to_json(g, i, model_.tokenizer, settings_.logprobs_option->count() > 0));
      } else {
        HEARTH_TRY(write_stdout("\n"));
      }
      if (!settings_.model.quiet)
        write_stderr(fmt::format("{}; {}; seed {}", describe_speed(g), finish_reason_name(g.reason), plan.params.seed));
      prefill_seconds_ += g.prefill_seconds;
      decode_seconds_ += g.decode_seconds;
      completion_tokens_ += std::ssize(g.tokens);
    }
    if (settings_.json) HEARTH_TRY(print_json(plan, prompt_ids, prompt, std::move(choices)));
    return interrupt.interrupted() ? kInterruptedExit : 0;
  }

 private:
  Status print_json(const GenerationPlan& plan, const std::vector<int32_t>& prompt_ids, const std::string& prompt,
                    nlohmann::json choices) const {
    const nlohmann::json result = {
        {"model", model_.name},
        {"prompt", prompt},
        {"prompt_token_ids", prompt_ids},
        {"sampling", sampling_json(plan.params)},
        {"choices", std::move(choices)},
        {"usage", {{"prompt_tokens", prompt_ids.size()}, {"completion_tokens", completion_tokens_}}},
        {"seconds", {{"load", model_.load_seconds}, {"prefill", prefill_seconds_}, {"decode", decode_seconds_}}}};
    // A token may be a part of a character: such bytes become U+FFFD.
    return write_stdout(result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }

  const GenerateSettings& settings_;
  const ServedModel& model_;
  double prefill_seconds_ = 0;
  double decode_seconds_ = 0;
  int64_t completion_tokens_ = 0;
};

// Reads the prompt. Tokenizing costs a hundred times the text's memory, so a text that cannot fit is refused by
// its bytes: no token stands for more of them than the longest one.
Result<std::string> read_prompt(PromptSource source, const Tokenizer& tokenizer, int64_t context) {
  int64_t longest = 64;
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, std::ssize(tokenizer.token_bytes(id)));
  const int64_t limit_bytes = context * longest;
  HEARTH_TRY_ASSIGN(std::string prompt, source.read(limit_bytes));
  if (std::ssize(prompt) <= limit_bytes) return prompt;
  return invalid_argument("the prompt has {} bytes or more; the context of {} tokens holds at most {}", prompt.size(),
                          context, limit_bytes);
}

Result<int> run_generate(const GenerateSettings& s) {
  if (s.logprobs_option->count() > 0 && !s.json) return invalid_argument("--logprobs: needs --json");
  HEARTH_TRY(find_model(s.model.model, s.model.load_format == "dummy"));  // before the prompt: the first word first
  HEARTH_TRY_ASSIGN(PromptSource source, PromptSource::open(s));
  const std::unique_ptr<ThreadPool> pool = make_pool(s.model);
  HEARTH_TRY_ASSIGN(const auto model, open_model(s.model, *pool));
  HEARTH_TRY_ASSIGN(GenerationPlan plan, plan_generation(s.sampling, *model, random_seed()));
  const ModelConfig& config = model->model->config();
  HEARTH_TRY_ASSIGN(const int64_t context, context_limit(s.max_model_len, config, kNoLimit));
  HEARTH_TRY_ASSIGN(const std::string prompt, read_prompt(std::move(source), model->tokenizer, context));
  HEARTH_TRY_ASSIGN(
      const std::vector<int32_t> ids,
      model->tokenizer.encode(prompt, {.add_special_tokens = !s.no_special_tokens}).with_context("prompt"));
  if (ids.empty())
    return invalid_argument("the prompt has no tokens, and {}; give a text",
                            s.no_special_tokens ? "--no-special-tokens adds none" : "this model's tokenizer adds none");
  for (const int32_t id : ids)
    if (id >= config.vocab_size)
      return invalid_argument("the prompt has token {}; the model's vocabulary has {}", id, config.vocab_size);
  HEARTH_TRY_ASSIGN(plan.max_tokens, fit_max_tokens(s.sampling.max_tokens, std::ssize(ids), context));
  if (plan.min_tokens > plan.max_tokens)
    return invalid_argument("--min-tokens {} is more than the {} tokens to write", plan.min_tokens, plan.max_tokens);
  if (s.logprobs_option->count() > 0) plan.logprobs = static_cast<int32_t>(s.logprobs);
  const RunnerOptions options = {.max_sequences = 1,
                                 .max_context = std::ssize(ids) + plan.max_tokens,
                                 .chunk_tokens = 512,
                                 .max_logit_rows = 1,
                                 .kv_format = model->kv_format,
                                 .decode_batches = decode_batches(s.model.enforce_eager ? 0 : 1)};
  HEARTH_TRY_ASSIGN(Runner runner, Runner::create(model->model, options, *pool));
  return GenerateRun(s, *model).run(runner, std::move(plan), ids, prompt);
}

}  // namespace

Command add_generate_command(CLI::App& app) {
  const auto s = std::make_shared<GenerateSettings>();
  CLI::App* command = app.add_subcommand("generate", "Continues a text.");
  command->footer(kExamples)->fallthrough();
  add_model_options(*command, s->model);
  add_max_model_len(*command, s->max_model_len, "the model's context");
  s->prompt_option = add_text(*command, "-p,--prompt", "TEXT", "The text to continue.", s->prompt)->group("Prompt");
  add_text(*command, "--prompt-file", "FILE",
           "A file with the text to continue, - for standard input. One newline at its end is left out.",
           s->prompt_file)
      ->group("Prompt");
  command
      ->add_flag("--no-special-tokens", s->no_special_tokens,
                 "Puts no BOS (or what else the tokenizer adds) before the prompt.")
      ->group("Prompt");
  command->add_flag("--echo", s->echo, "Prints the prompt before the text.")->group("Prompt");
  add_sampling_options(*command, s->sampling, "128, or what fits");
  add_setting(*command, kN, s->n)->group("Output");
  s->logprobs_option = add_setting(*command, kLogprobs, s->logprobs)->group("Output");
  command->add_flag("--json", s->json, "One JSON object at the end, with token ids, reasons and times.")
      ->group("Output");
  return {command, [s] { return run_generate(*s); }};
}

}  // namespace hearth
