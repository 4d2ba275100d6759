// SPDX-License-Identifier: Apache-2.0
// What goes into the engine and what comes out of it. A request asks for n continuations ("choices") of one
// prompt; each is a sequence of the step loop with its own random numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/engine/served_model.h"
#include "hearth/kernels/sample/sample.h"
#include "hearth/schedule/slo.h"
#include "hearth/text/grammar.h"

namespace hearth {

struct Request {
  std::string id;  // for logs
  std::shared_ptr<const ServedModel> model;
  std::vector<int32_t> prompt;  // 1 to model->max_context tokens
  int32_t n = 1;                // choice i draws with params.choice = i

  SamplingParams params;
  std::vector<LogitBias> logit_bias;
  std::vector<std::string> stop;  // limits: DetokenizerOptions
  bool include_stop = false;
  bool skip_special = true;
  std::vector<int32_t> end_ids;  // ids that end the text (the model's, unless ignore_eos, and the request's), ascending
  int64_t min_tokens = 0;        // before this many, no id of end_ids is drawn; stop strings still end the text
  int64_t max_tokens = 0;        // 0: only the prompt's logprobs are wanted
  int32_t logprobs = kNoLogprobs;         // of the tokens drawn: how many alternatives
  int32_t prompt_logprobs = kNoLogprobs;  // of the prompt: the same; sent with choice 0
  std::optional<Grammar> grammar;

  std::string tenant;
  int32_t priority = 0;  // smaller is sooner, as in vLLM
  Slo slo;
  std::string cache_salt;  // requests with different salts never share a prefix's KV
  int32_t adapter = -1;    // none
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };
// stop, length, cancelled, error
std::string_view finish_reason_name(FinishReason reason);

struct OutputToken {
  int32_t id = 0;
  float logprob = 0;              // unless the request's logprobs are kNoLogprobs
  std::vector<TokenLogprob> top;  // most likely first
  std::string text;               // what became certain with this token: whole characters, often empty
};

struct PromptLogprob {
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

// One piece of a choice's stream. Concatenated `tokens` and `text` of the pieces are the choice.
struct Output {
  int32_t choice = 0;
  std::vector<PromptLogprob> prompt;  // of the next prompt tokens, from prompt[1] on; before all tokens
  std::vector<OutputToken> tokens;
  std::string rest;                      // with `finish`: text that was held back and is now certain
  std::optional<FinishReason> finish;    // the choice's last piece
  std::optional<std::string> stop_text;  // with kStop: the stop string that was met,
  std::optional<int32_t> stop_token;     // or the id of end_ids, which is the last of `tokens`
  std::optional<Error> error;            // with kError
  int64_t shared_prompt_tokens = 0;      // with `finish`: prompt tokens whose KV was there: of another choice, cached
};

}  // namespace hearth
