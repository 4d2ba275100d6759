// SPDX-License-Identifier: Apache-2.0
// From a call and a model to Requests of the engine: defaults, templates, tokens, grammar, all checks. Takes long for
// long prompts: not for the threads of the connections. Pure but for a random seed; any thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hearth/engine/request.h"
#include "hearth/serve/chat_request.h"
#include "hearth/serve/completion_request.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

struct PreparedPrompt {
  Request request;
  std::string text;  // for echo
};

// Who asks, and of what there is at the moment.
struct RequestOrigin {
  std::string id;
  std::string tenant;
  int64_t kv_tokens = 0;       // that the model's KV pool holds, where that may be less than its context; 0: unknown
  std::function<bool()> gone;  // nobody waits for it any more: asked before each prompt; may be empty
};

// One for each prompt, in their order. Cancelled where the one who asks is gone.
ApiResult<std::vector<PreparedPrompt>> prepare_completion(const CompletionCall& call, const ApiModel& model,
                                                          const ApiLimits& limits, const RequestOrigin& origin);
ApiResult<std::vector<PreparedPrompt>> prepare_chat(const ChatCall& call, const ApiModel& model,
                                                    const ApiLimits& limits, const RequestOrigin& origin);

// The tokens of a text. `param` is what errors call it.
ApiResult<std::vector<int32_t>> encode_prompt(const ApiModel& model, std::string_view text, bool add_special_tokens,
                                              const char* param);
// What the model's template makes of the messages.
ApiResult<std::string> render_chat(const ApiModel& model, const ChatMessages& chat);

}  // namespace hearth
