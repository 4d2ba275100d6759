// SPDX-License-Identifier: Apache-2.0
// One text from one prompt: the loop of feed, sample, detokenize that `generate` and `chat` share. Text
// goes out as soon as it is certain. One thread.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/cli/options.h"
#include "hearth/engine/request.h"
#include "hearth/model/runner.h"

namespace hearth {

// SamplingSettings with the model's defaults filled in and everything checked against the model.
struct GenerationPlan {
  SamplingParams params;
  std::vector<LogitBias> logit_bias;
  std::vector<std::string> stop;
  bool include_stop = false;
  std::vector<int32_t> end_ids;   // tokens that end the text, ascending
  std::vector<uint32_t> allowed;  // bitset of the tokens that the tokenizer has; empty: all of the model's
  int64_t min_tokens = 0;
  int64_t max_tokens = 0;
  int32_t logprobs = kNoLogprobs;
};

// InvalidArgument for a value out of range or a token that the model does not have. `seed` where none is set.
Result<GenerationPlan> plan_generation(const SamplingSettings& settings, const ServedModel& model, uint64_t seed);

// A seed from the system's random source, of 32 bits so that people can type it again.
uint64_t random_seed();

struct GeneratedToken {
  int32_t id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

struct Generation {
  std::string text;
  std::vector<GeneratedToken> tokens;  // the one that ended the text included
  FinishReason reason = FinishReason::kLength;
  std::optional<std::string> stop_text;  // the stop string that was met
  std::optional<int32_t> stop_token;     // the token that ended the text
  int64_t fed_tokens = 0;                // of the prompt; less than all where the context held a part already
  double prefill_seconds = 0;            // until the first token was chosen
  double decode_seconds = 0;             // from then on
};

// Called with each piece of text; an error ends the generation.
using OnText = std::function<Status(std::string_view piece)>;

// Continues `prompt` in slot 0 of `runner`. `fed` is what the slot holds and is kept up to date: the part
// that it shares with the prompt is not computed again. `stop` true ends with kCancelled.
// REQUIRES: prompt and max_tokens fit into the runner's context.
Result<Generation> generate(Runner& runner, const Tokenizer& tokenizer, const GenerationPlan& plan,
                            const std::vector<int32_t>& prompt, std::vector<int32_t>& fed, const OnText& on_text,
                            const std::atomic<bool>& stop);

// "10 prompt tokens in 0.012 s (830 tokens/s), ...": for people, on stderr.
std::string describe_speed(const Generation& generation);

}  // namespace hearth
