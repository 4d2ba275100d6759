// SPDX-License-Identifier: Apache-2.0
// GenerationCall: what completions and chat completions ask for alike, read from JSON and checked against the
// limits of the API. Knows no model: token ids, context and defaults are checked where a Request is made of it.
// Pure; any thread. Compiles without coroutines.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hearth/kernels/sample/sample.h"
#include "hearth/serve/api_error.h"
#include "hearth/serve/json_request.h"
#include "hearth/serve/limits.h"
#include "hearth/text/grammar.h"

namespace hearth {

struct GenerationCall {
  std::string model;  // empty: absent
  int32_t n = 1;
  // Unset: the model's default.
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::optional<uint64_t> seed;
  std::vector<LogitBias> logit_bias;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop = false;
  bool ignore_eos = false;
  bool skip_special = true;
  int64_t min_tokens = 0;
  std::optional<int64_t> max_tokens;
  std::optional<int32_t> logprobs;         // alternatives for each token
  std::optional<int32_t> prompt_logprobs;  // the field of that name
  std::optional<GrammarSpec> grammar;
  std::string grammar_param;                 // the field that asked for it
  int64_t ttft_slo_ms = 0, tpot_slo_ms = 0;  // 0: the server's
  int32_t priority = 0;
  std::string cache_salt;
  bool stream = false;
  bool include_usage = false;     // stream_options
  bool continuous_usage = false;  // stream_options
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // return_tokens_as_token_ids
};

// Everything but max_tokens and logprobs, whose form differs between the routes. `budget`: what the body has left.
ApiStatus read_generation(const Json& body, const ApiLimits& limits, JsonBudget& budget, GenerationCall& call);

// Refuses a field that would change the result if it were passed over, unless it is absent, null, false, 0 or empty.
ApiStatus refuse_field(const Json& body, const char* name, const char* why);

}  // namespace hearth
