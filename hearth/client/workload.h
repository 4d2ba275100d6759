// SPDX-License-Identifier: Apache-2.0
// What a load test sends and when: drawn before it starts, from a seed or a trace, so that it does not depend on how
// the server answers. Pure functions of their arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

// One request of the plan.
struct PlannedRequest {
  double arrival_s = 0;      // since the start of the test; never decreasing along the plan
  int64_t input_tokens = 0;  // 0: not known before the server counts
  int64_t output_tokens = 0;
  int64_t model = 0;  // of the plan's
};

// Arrival times of `count` requests with `rate` per second on average, from 0 on: gaps follow a Gamma distribution
// with shape `burstiness` and mean 1/rate, which is exponential (a Poisson process) for 1, burstier below, more even
// above. Infinite rate: all at 0. REQUIRES: rate > 0, burstiness > 0.
std::vector<double> draw_arrivals(int64_t count, double rate, double burstiness, uint64_t seed);

// Lengths drawn uniformly from [mean (1 - ratio), mean (1 + ratio)], at least 1. REQUIRES: mean >= 1, 0 <= ratio < 1.
std::vector<int64_t> draw_lengths(int64_t count, int64_t mean, double ratio, uint64_t seed, uint64_t stream);

// A recorded load.
struct Trace {
  bool has_times = false;  // else arrival_s is 0 in all, and the caller draws the times
  std::vector<PlannedRequest> requests;
};

// The CSV of Azure's LLM inference traces (TIMESTAMP,ContextTokens,GeneratedTokens) or of lengths alone
// (num_prefill_tokens,num_decode_tokens and others, as ShareGPT's): a header line names the columns, in any order.
// Times count from the first request; one that goes back by at most a second is taken as equal to the one before, as
// recorders on several machines write them. InvalidArgument or Corrupt names the line, what was found and wanted.
Result<Trace> parse_trace(std::string_view csv);

// "2023-11-16 18:15:46.6805900" (or with 'T', or with a zone Z) in seconds since 1970, or a plain number of seconds.
std::optional<double> parse_timestamp(std::string_view text);

// Token ids of request `index`, drawn from `ids`. REQUIRES: ids is not empty.
std::vector<int32_t> draw_prompt(const std::vector<int32_t>& ids, int64_t tokens, uint64_t seed, uint64_t index);

// A text of about so many tokens for routes that take no ids: short English words.
std::string draw_text(int64_t words, uint64_t seed, uint64_t index);

// One line of a prompts file: {"prompt": TEXT or [ids], "max_tokens": N} or {"messages": [...], "max_tokens": N}.
struct PromptLine {
  std::string prompt_json;    // the value of "prompt"; empty where there are messages
  std::string messages_json;  // the value of "messages"
  int64_t input_tokens = 0;   // of a list of ids
  int64_t output_tokens = 0;  // 0: not said
};
// Empty lines are skipped. Corrupt names the line.
Result<std::vector<PromptLine>> parse_prompt_lines(std::string_view jsonl);

}  // namespace hearth
