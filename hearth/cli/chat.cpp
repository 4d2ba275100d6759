// SPDX-License-Identifier: Apache-2.0
// hearth chat: a dialogue with a model that is loaded here, whose context stays in the KV cache so that only what is
// new is computed, or with one of a server. The main thread.
#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "hearth/cli/commands.h"
#include "hearth/cli/dialogue.h"
#include "hearth/cli/generation.h"
#include "hearth/cli/options.h"
#include "hearth/cli/remote_chat.h"
#include "hearth/cli/session.h"
#include "hearth/cli/terminal.h"
#include "hearth/text/chat_template.h"

namespace hearth {
namespace {

constexpr int64_t kDefaultMaxTokens = 512;
// Memory for the context is set aside at the start: the whole context of a large model would be too much.
constexpr int64_t kDefaultContext = 8192;

constexpr const char* kModelGroup = "Model";  // of the help, and so of options that say how a model is loaded

constexpr const char* kExamples =
    "Examples:\n"
    "  hearth chat Qwen/Qwen2.5-0.5B-Instruct\n"
    "  hearth chat models/fable-13m --system-prompt \"You tell sea stories.\" --temperature 0.7\n"
    "  hearth chat --base-url http://127.0.0.1:8000\n"
    "\n"
    "In the dialogue, /help lists the commands, Ctrl-C ends an answer and Ctrl-D leaves. Sampling settings that are\n"
    "not given are those of the model's generation_config.json.\n";

struct ChatSettings {
  ModelSettings model;
  SamplingSettings sampling;
  std::optional<int64_t> max_model_len;
  std::string system_prompt;
  RemoteChatSettings remote;
};

int64_t local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return static_cast<int64_t>(now) + local.tm_gmtoff;
}

// A model in this process. What of the dialogue the runner's KV cache holds is not computed again.
class LocalPartner final : public ChatPartner {
 public:
  // REQUIRES: the model has a chat template.
  LocalPartner(const ChatSettings& settings, const ServedModel& model, GenerationPlan plan, Runner runner)
      : settings_(settings), model_(model), plan_(std::move(plan)), runner_(std::move(runner)) {}

  std::string name() const override { return model_.name; }

  Result<ChatTurn> answer(const nlohmann::json& messages, const std::atomic<bool>& stop) override {
    ChatTurn turn;
    const auto ids = prompt_ids(messages);
    turn.refusal = refusal(ids);
    if (!turn.refusal.empty()) return turn;
    const int64_t left = runner_.max_context() - std::ssize(*ids);
    plan_.max_tokens = std::min(left, settings_.sampling.max_tokens.value_or(kDefaultMaxTokens));
    const OnText on_text = [](std::string_view piece) { return write_stdout(piece); };
    HEARTH_TRY_ASSIGN(const Generation g, generate(runner_, model_.tokenizer, plan_, *ids, fed_, on_text, stop));
    HEARTH_TRY(write_stdout("\n"));
    turn.text = g.text;
    if (g.reason == FinishReason::kCancelled) turn.notices.push_back("ended by Ctrl-C");
    if (g.reason == FinishReason::kLength)
      turn.notices.push_back(left <= plan_.max_tokens ? "the context is full; /reset starts anew"
                                                      : "ended at --max-tokens");
    if (!settings_.model.quiet) turn.notices.push_back(describe_speed(g));
    return turn;
  }

 private:
  Result<std::vector<int32_t>> prompt_ids(const nlohmann::json& dialogue) const {
    const std::string messages = dialogue.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
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

  const ChatSettings& settings_;
  const ServedModel& model_;
  GenerationPlan plan_;
  Runner runner_;
  std::vector<int32_t> fed_;  // what slot 0 of the runner holds
};

Result<int> run_local(const ChatSettings& s) {
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
                                 .kv_format = model->kv_format,
                                 .decode_batches = decode_batches(s.model.enforce_eager ? 0 : 1)};
  HEARTH_TRY_ASSIGN(Runner runner, Runner::create(model->model, options, *pool));
  if (!s.model.quiet) write_stderr(fmt::format("(context {} tokens, seed {})", context, plan.params.seed));
  LocalPartner partner(s, *model, std::move(plan), std::move(runner));
  return Dialogue(partner, s.system_prompt).run();
}

// With --base-url, what says how a model is loaded here means nothing, and is refused rather than ignored.
Status check_remote(const CLI::App& command, const ChatSettings& s) {
  if (!s.model.model.empty())
    return invalid_argument("{} names a model to load here; with --base-url, --model chooses one of the server's",
                            s.model.model);
  for (const CLI::Option* option : command.get_options())
    if (option->get_group() == kModelGroup && option->count() > 0)
      return invalid_argument("{} says how a model is loaded here; the server of --base-url has loaded its own",
                              option->get_name());
  if (s.sampling.generation_config != "auto")
    return invalid_argument("--generation-config is the server's to say where --base-url names one");
  return {};
}

Result<int> run_chat(const CLI::App& command, const ChatSettings& s) {
  if (s.remote.base_url.empty()) {
    if (!s.remote.model.empty()) return invalid_argument("--model needs --base-url; a model to load here is MODEL");
    if (s.model.model.empty()) return invalid_argument("MODEL is required, or --base-url for a server's");
    return run_local(s);
  }
  HEARTH_TRY(check_remote(command, s));
  HEARTH_TRY_ASSIGN(const auto partner, connect_chat(s.remote, s.sampling, s.model.quiet));
  return Dialogue(*partner, s.system_prompt).run();
}

}  // namespace

Command add_chat_command(CLI::App& app) {
  const auto s = std::make_shared<ChatSettings>();
  CLI::App* command = app.add_subcommand("chat", "Talks with a model in the terminal.");
  command->footer(kExamples)->fallthrough();
  add_model_options(*command, s->model);
  command->get_option("MODEL")->required(false);
  add_max_model_len(*command, s->max_model_len, "the model's context, at most 8192");
  add_text(*command, "--system-prompt", "TEXT", "What the model is told before the dialogue (default: nothing).",
           s->system_prompt)
      ->group("Prompt");
  add_sampling_options(*command, s->sampling, "512, or what fits; a server's own");
  constexpr const char* kServer = "Server";
  add_text(*command, "--base-url", "URL", "Talks with a model of the server at http://HOST:PORT; none is loaded here.",
           s->remote.base_url)
      ->group(kServer);
  add_text(*command, "--model", "NAME", "Which of the server's models (default: its only one).", s->remote.model)
      ->group(kServer);
  add_text(*command, "--api-key", "KEY", "Sent as Authorization: Bearer KEY (default: the variable OPENAI_API_KEY).",
           s->remote.api_key)
      ->envname("OPENAI_API_KEY")
      ->group(kServer);
  return {command, [s, command] { return run_chat(*command, *s); }};
}

}  // namespace hearth
