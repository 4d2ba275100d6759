// SPDX-License-Identifier: Apache-2.0
// What a request to the API may ask for. Every limit has a message and a status (docs/guides/api.md); the table
// of settings of `hearth serve` fills them.
#pragma once

#include <cstdint>

#include "hearth/text/grammar.h"

namespace hearth {

struct ApiLimits {
  int64_t json_depth = 64;
  int64_t json_values = 2'000'000;  // of one body: bounds the memory of its tree
  int64_t prompts = 128;            // of one completion request
  int64_t n = 16;
  int64_t choices = 128;  // prompts * n
  int64_t logprobs = 20;
  int64_t logit_bias = 1024;
  int64_t stop = 16;         // stop strings
  int64_t stop_bytes = 256;  // of one stop string
  int64_t stop_token_ids = 128;
  int64_t messages = 4096;
  int64_t max_tokens = 0;        // of one choice; 0: what the model's context holds
  int64_t requests = 512;        // in flight, streaming or not; more get 503
  int64_t requests_per_key = 0;  // of one API key; more get 429; 0: no limit of its own
  GrammarLimits grammar;
  int64_t template_time_ms = 1000;
};

}  // namespace hearth
