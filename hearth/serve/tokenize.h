// SPDX-License-Identifier: Apache-2.0
// POST /tokenize and /detokenize, in vLLM's form. For workers: long texts take long. Pure; any thread.
#pragma once

#include <string>
#include <string_view>

#include "hearth/serve/api_error.h"
#include "hearth/serve/limits.h"
#include "hearth/serve/model_registry.h"

namespace hearth {

// {"prompt": text} or {"messages": [...]} -> {"count","max_model_len","tokens","token_strs"}
ApiResult<std::string> tokenize_reply(std::string_view body, const ModelRegistry& models, const ApiLimits& limits);
// {"tokens": [...]} -> {"prompt"}
ApiResult<std::string> detokenize_reply(std::string_view body, const ModelRegistry& models, const ApiLimits& limits);

}  // namespace hearth
