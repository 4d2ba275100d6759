// SPDX-License-Identifier: Apache-2.0
// ChatTemplate: a Jinja template that turns messages into one prompt, as transformers' apply_chat_template does
// (trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception, strftime_now, {% generation %}, Python's
// methods of str, list and dict).
// I1. Immutable after compile(): render() may be called from many threads at once.
// I2. A template comes from a downloaded file: whatever it does, render() ends within its limits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

// Reaching one is ResourceExhausted (DeadlineExceeded for the time), with a message that names it.
struct ChatTemplateLimits {
  int64_t max_source_bytes = int64_t{1} << 20;
  int64_t max_input_bytes = int64_t{32} << 20;   // messages, tools and extra together
  int64_t max_output_bytes = int64_t{32} << 20;  // the prompt
  int64_t max_steps = 10'000'000;                // instructions of the template engine
  // Bytes that all operations together may read or make: bounds memory, and the time of a single step.
  int64_t max_work_bytes = int64_t{256} << 20;
  int64_t max_time_ms = 5000;
};

struct ChatTemplateArgs {
  std::string_view messages_json;  // an array
  std::string_view tools_json;     // an array; empty: none
  std::string_view extra_json;     // an object, its members become variables; empty: none
  bool add_generation_prompt = false;
  std::map<std::string, std::string> special_tokens;  // Tokenizer::special_tokens()
  // What strftime_now() prints: seconds since 1970-01-01 of the local civil time.
  int64_t local_time_s = 0;
};

class ChatTemplate {
 public:
  // InvalidArgument: not a Jinja template; the message has the line.
  static Result<ChatTemplate> compile(std::string_view source, const ChatTemplateLimits& limits = {});
  // The template called `name` of `tokenizer`; NotFound if the model has none of that name.
  static Result<ChatTemplate> from_tokenizer(const Tokenizer& tokenizer, std::string_view name = "default",
                                             const ChatTemplateLimits& limits = {});

  // InvalidArgument: JSON of the wrong form, the template's raise_exception(message), or an operation that
  // fails on these messages.
  Result<std::string> render(const ChatTemplateArgs& args) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace hearth
