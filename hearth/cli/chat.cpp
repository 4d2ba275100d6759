// SPDX-License-Identifier: Apache-2.0
// hearth chat: a dialogue in the terminal, or over a pipe with one message a line. The context of the
// dialogue stays in the KV cache; only what is new is computed.
#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "hearth/cli/commands.h"
#include "hearth/cli/generation.h"
#include "hearth/cli/help.h"
#include "hearth/cli/options.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/text/chat_template.h"

namespace hearth {
namespace {

constexpr int64_t kDefaultMaxTokens = 512;
// Memory for the context is set aside at the start: the whole context of a large model would be too much.
constexpr int64_t kDefaultContext = 8192;

constexpr const char* kExamples =
    "Examples:\n"
    "  hearth chat Qwen/Qwen2.5-0.5B-Instruct\n"
    "  hearth chat models/fable-13m --system-prompt \"You tell sea stories.\" --temperature 0.7\n"
    "\n"
    "In the dialogue, /help lists the commands, Ctrl-C ends an answer and Ctrl-D leaves. Sampling settings that are\n"
    "not given are those of the model's generation_config.json.\n";

constexpr std::string_view kCommands =
    "/system TEXT   starts anew with TEXT as the system prompt; without TEXT, shows it\n"
    "/reset         forgets the dialogue, keeps the system prompt\n"
    "/help          this list\n"
    "/exit          leaves, as Ctrl-D does\n";

struct ChatSettings {
  ModelSettings model;
  SamplingSettings sampling;
  std::optional<int64_t> max_model_len;
  std::string system_prompt;
};

int64_t local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return static_cast<int64_t>(now) + local.tm_gmtoff;
}

class Chat {
 public:
  // REQUIRES: the model has a chat template.
  Chat(const ChatSettings& settings, const ServedModel& model, GenerationPlan plan, Runner runner)
      : settings_(settings),
        model_(model),
        plan_(std::move(plan)),
        runner_(std::move(runner)),
        interactive_(stdin_is_terminal() && stdout_is_terminal()),
        system_(settings.system_prompt) {
    reset();
  }

  Result<int> run() {
    if (interactive_) HEARTH_TRY(write_stdout(fmt::format("Chat with {}. /help lists the commands.\n", model_.name)));
    while (true) {
      if (interactive_) HEARTH_TRY(write_stdout("\n> "));
      std::string line;
      interrupt_.clear();
      const LineReader::Outcome outcome = reader_.read(line);
      if (outcome == LineReader::Outcome::kEnd) break;
      if (outcome == LineReader::Outcome::kInterrupted) {
        HEARTH_TRY(write_stdout("\n(/exit or Ctrl-D leaves)\n"));
        continue;
      }
      if (line.find_first_not_of(" \t") == std::string::npos) continue;
      if (line[0] == '/') {
        HEARTH_TRY_ASSIGN(const bool leave, command(line));
        if (leave) return 0;
        continue;
      }
      HEARTH_TRY(answer(line));
    }
    if (interactive_) HEARTH_TRY(write_stdout("\n"));
    return 0;
  }

 private:
  void reset() {
    messages_ = nlohmann::json::array();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
  }

  // Runs a /command; true to leave.
  Result<bool> command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/exit") return true;
    if (name == "/help") {
      HEARTH_TRY(write_stdout(kCommands));
    } else if (name == "/reset") {
      reset();
      notice("a new dialogue");
    } else if (name == "/system" && rest.empty()) {
      notice(system_.empty() ? "no system prompt" : "system prompt: " + system_);
    } else if (name == "/system") {
      system_ = rest;
      reset();
      notice("a new dialogue with this system prompt");
    } else {
      const std::string near = nearest(name, {"/exit", "/help", "/reset", "/system"});
      notice(fmt::format("unknown command {}{}; /help lists them", name,
                         near.empty() ? "" : ", did you mean " + near + "?"));
    }
    return false;
  }

  // What is said beside the dialogue.
  void notice(const std::string& text) const { write_stderr("(" + text + ")"); }

  Result<std::vector<int32_t>> prompt_ids() const {
    const std::string messages = messages_.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    HEARTH_TRY_ASSIGN(const std::string prompt,
                      model_.chat_template->render({.messages_json = messages,
                                                    .tools_json = {},
                                                    .extra_json = {},
                                                    .add_generation_prompt = true,
                                                    .special_tokens = model_.tokenizer.special_tokens(),
                                                    .local_time_s = local_time()}));
    // The template writes BOS itself where the model wants it.
    return model_.tokenizer.encode(prompt, {.add_special_tokens = false});
  }

  // Why the dialogue with these ids cannot be answered; empty: it can.
  std::string refusal(const Result<std::vector<int32_t>>& ids) const {
    if (!ids) return ids.error().message;
    const int64_t vocab = model_.model->config().vocab_size;
    for (const int32_t id : *ids)
      if (id >= vocab) return fmt::format("the message has token {} and the model's vocabulary has {}", id, vocab);
    if (ids->empty()) return "the dialogue has no tokens";
    if (std::ssize(*ids) < runner_.max_context()) return "";
    return fmt::format("the dialogue has {} tokens with this message and the context holds {}", ids->size(),
                       runner_.max_context());
  }

  Status answer(const std::string& message) {
    messages_.push_back({{"role", "user"}, {"content", message}});
    const auto ids = prompt_ids();
    if (const std::string why = refusal(ids); !why.empty()) {
      messages_.erase(messages_.size() - 1);
      notice(why + "; the message was left out, /reset starts anew");
      return {};
    }
    const int64_t left = runner_.max_context() - std::ssize(*ids);
    plan_.max_tokens = std::min(left, settings_.sampling.max_tokens.value_or(kDefaultMaxTokens));
    interrupt_.clear();
    const OnText on_text = [](std::string_view piece) { return write_stdout(piece); };
    HEARTH_TRY_ASSIGN(const Generation g,
                      generate(runner_, model_.tokenizer, plan_, *ids, fed_, on_text, interrupt_.flag()));
    HEARTH_TRY(write_stdout("\n"));
    messages_.push_back({{"role", "assistant"}, {"content", g.text}});
    if (g.reason == FinishReason::kCancelled) notice("ended by Ctrl-C");
    if (g.reason == FinishReason::kLength)
      notice(left <= plan_.max_tokens ? "the context is full; /reset starts anew" : "ended at --max-tokens");
    if (!settings_.model.quiet) notice(describe_speed(g));
    return {};
  }

  const ChatSettings& settings_;
  const ServedModel& model_;
  GenerationPlan plan_;
  Runner runner_;
  const bool interactive_;
  InterruptGuard interrupt_;
  LineReader reader_;
  std::string system_;
  nlohmann::json messages_;
  std::vector<int32_t> fed_;  // what slot 0 of the runner holds
};

Result<int> run_chat(const ChatSettings& s) {
  const std::unique_ptr<ThreadPool> pool = make_pool(s.model);
  HEARTH_TRY_ASSIGN(const auto model, open_model(s.model, *pool, true));
  if (!model->chat_template)
    return invalid_argument(
        "{} has no chat template, so it was not trained to chat; `hearth generate` continues a text", model->name);
  HEARTH_TRY_ASSIGN(GenerationPlan plan, plan_generation(s.sampling, *model, random_seed()));
  HEARTH_TRY_ASSIGN(const int64_t context, context_limit(s.max_model_len, model->model->config(), kDefaultContext));
  const RunnerOptions options = {.max_sequences = 1,
                                 .max_context = context,
                                 .chunk_tokens = 512,
                                 .max_logit_rows = 1,
                                 .kv_format = model->kv_format};
  HEARTH_TRY_ASSIGN(Runner runner, Runner::create(model->model, options, *pool));
  if (!s.model.quiet) write_stderr(fmt::format("(context {} tokens, seed {})", context, plan.params.seed));
  return Chat(s, *model, std::move(plan), std::move(runner)).run();
}

}  // namespace

Command add_chat_command(CLI::App& app) {
  const auto s = std::make_shared<ChatSettings>();
  CLI::App* command = app.add_subcommand("chat", "Talks with a model in the terminal.");
  command->footer(kExamples)->fallthrough();
  add_model_options(*command, s->model);
  add_max_model_len(*command, s->max_model_len, "the model's context, at most 8192");
  add_text(*command, "--system-prompt", "TEXT", "What the model is told before the dialogue (default: nothing).",
           s->system_prompt)
      ->group("Prompt");
  add_sampling_options(*command, s->sampling, "512, or what fits");
  return {command, [s] { return run_chat(*s); }};
}

}  // namespace hearth
