// SPDX-License-Identifier: Apache-2.0
// The main thread.
#include "hearth/cli/dialogue.h"

#include "hearth/cli/help.h"

namespace hearth {
namespace {

constexpr std::string_view kCommands =
    "/system TEXT   starts anew with TEXT as the system prompt; without TEXT, shows it\n"
    "/reset         forgets the dialogue, keeps the system prompt\n"
    "/help          this list\n"
    "/exit          leaves, as Ctrl-D does\n";

// What is said beside the dialogue.
void notice(const std::string& text) { write_stderr("(" + text + ")"); }

}  // namespace

Dialogue::Dialogue(ChatPartner& partner, std::string system_prompt)
    : partner_(partner), interactive_(stdin_is_terminal() && stdout_is_terminal()), system_(std::move(system_prompt)) {
  reset();
}

Result<int> Dialogue::run() {
  if (interactive_) HEARTH_TRY(write_stdout(fmt::format("Chat with {}. /help lists the commands.\n", partner_.name())));
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

void Dialogue::reset() {
  messages_ = nlohmann::json::array();
  if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
}

// Runs a /command; true to leave.
Result<bool> Dialogue::command(const std::string& line) {
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

Status Dialogue::answer(const std::string& message) {
  messages_.push_back({{"role", "user"}, {"content", message}});
  interrupt_.clear();
  HEARTH_TRY_ASSIGN(const ChatTurn turn, partner_.answer(messages_, interrupt_.flag()));
  if (turn.failure && !interactive_) return *turn.failure;
  const std::string why = turn.failure ? turn.failure->message : turn.refusal;
  if (!why.empty()) {
    messages_.erase(messages_.size() - 1);
    notice(why + "; the message was left out, /reset starts anew");
    return {};
  }
  messages_.push_back({{"role", "assistant"}, {"content", turn.text}});
  for (const std::string& text : turn.notices) notice(text);
  return {};
}

}  // namespace hearth
