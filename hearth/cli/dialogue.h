// SPDX-License-Identifier: Apache-2.0
// The dialogue of hearth chat: lines in, /commands, answers out, whoever answers. In the terminal, or over a pipe
// with one message a line. The main thread.
//   I1. A message that got no answer is not in the dialogue, and what came of an answer that Ctrl-C ended is.
#pragma once

#include <atomic>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/cli/terminal.h"

namespace hearth {

// What became of a message.
struct ChatTurn {
  std::string text;                  // the answer, already written to stdout
  std::string refusal;               // not empty: there is no answer, and why; the next message may have one
  std::optional<Error> failure;      // there is no answer since who answers failed; ends a dialogue over a pipe
  std::vector<std::string> notices;  // to say after the answer
};

// Who answers: a model in this process, or a server.
class ChatPartner {
 public:
  virtual ~ChatPartner() = default;
  virtual std::string name() const = 0;
  // Answers the last of `messages`, which are as the OpenAI API has them, and writes the text as it comes, with a
  // newline behind it. `stop` true ends the answer. An error ends the dialogue.
  virtual Result<ChatTurn> answer(const nlohmann::json& messages, const std::atomic<bool>& stop) = 0;
};

class Dialogue {
 public:
  // `partner` outlives it.
  Dialogue(ChatPartner& partner, std::string system_prompt);
  // Until the end of the input or /exit. The exit code.
  Result<int> run();

 private:
  void reset();
  Result<bool> command(const std::string& line);
  Status answer(const std::string& message);

  ChatPartner& partner_;
  const bool interactive_;
  InterruptGuard interrupt_;
  LineReader reader_;
  std::string system_;
  nlohmann::json messages_;
};

}  // namespace hearth
