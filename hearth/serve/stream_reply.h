// SPDX-License-Identifier: Apache-2.0
// StreamReply: the events of a streamed answer, from what the engine says, as text for the socket.
//   I1. Each token is one event, also where its text is empty; nothing is said twice, nothing is lost.
//   I2. With echo, a choice begins with one event of the prompt; where that needs the prompt's logprobs, events of
//       the other choices wait for them.
//   I3. After a failure there is one event with the error and no [DONE].
// One thread at a time. Compiles without coroutines.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hearth/serve/reply.h"

namespace hearth {

class StreamReply {
 public:
  explicit StreamReply(ReplyPlan plan);

  // Appends the events of the next piece of prompt `prompt`. After a failure: nothing.
  void take(size_t prompt, Output&& output, std::string& events);
  // Every choice has ended, or one has failed: nothing more will come but end().
  bool done() const { return error_ || open_ == 0; }
  const std::optional<ApiError>& error() const { return error_; }
  // About how many bytes take() will write of the prompts while choices have not begun.
  int64_t about_begin_bytes() const { return unbegun_ > 0 || untold_ > 0 ? begin_bytes_ : 0; }
  // And of a piece.
  int64_t about_bytes(const Output& output) const;
  // Destroying it may take long. Stays as it is from the start: any thread may ask.
  bool large() const { return begin_bytes_ > kSmallReplyBytes; }
  // Usage where it is asked for, and [DONE]; the error where there was one.
  void end(std::string& events);
  // Ends the stream with an error of our own.
  void fail(const ApiError& error, std::string& events);

 private:
  struct Choice {
    ChoiceState ending;  // how it ended; text and tokens are gone once they are written
    int64_t offset = 0;  // characters written
    int64_t tokens = 0;
    bool begun = false;
    bool told_prompt = false;  // return_token_ids
  };
  struct PromptStream {
    PromptState state;
    std::vector<Choice> choices;
    std::vector<Output> waiting;  // for the prompt's logprobs
    bool scored = false;          // all of the prompt's logprobs are there
  };

  void write(size_t prompt, Output&& output, std::string& events);
  void begin(size_t prompt, int32_t index, std::string& events);
  // Events of one token and of the end; `rest` is text after the last token.
  Json token_choice(size_t prompt, int32_t index, const OutputToken& token, const std::string& rest);
  Json end_choice(size_t prompt, int32_t index, const std::string& rest);
  Json empty_choice(size_t prompt, int32_t index) const;
  void emit(size_t prompt, int32_t index, Json choice, std::string& events);
  Usage usage() const;

  const ReplyPlan plan_;
  const Json head_;
  std::vector<PromptStream> prompts_;
  int64_t open_;     // choices that have not ended
  int64_t unbegun_;  // choices without a first event
  int64_t untold_;   // with return_token_ids: choices whose prompt has not been told
  int64_t begin_bytes_ = 0;
  std::optional<ApiError> error_;
};

// `data: {...}` with the empty line after it.
void append_event(const std::string& data, std::string& events);

}  // namespace hearth
