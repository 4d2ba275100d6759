// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/completions. Pure; any thread. Compiles without coroutines.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hearth/serve/generation_request.h"

namespace hearth {

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionCall : GenerationCall {
  std::vector<Prompt> prompts;  // at least one
  bool echo = false;
  bool add_special_tokens = true;  // to prompts that are text
};

ApiResult<CompletionCall> parse_completion(std::string_view body, const ApiLimits& limits);

}  // namespace hearth
