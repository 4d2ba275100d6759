// SPDX-License-Identifier: Apache-2.0
// Sampling: one token per row of logits, by the parameters of the row. The text of a request depends on
// neither batch nor backend: random numbers are counter-based, keyed by (seed, choice, position), and
// every tie goes to the smaller id.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/shape.h"

namespace hearth {

struct LogitBias {
  int32_t token = 0;
  float bias = 0;
};

// Parameters of one row. The defaults sample from the plain distribution.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy, the largest logit
  int32_t top_k = 0;                // keep the k most likely tokens; 0: all
  float top_p = 1.0f;               // keep the smallest set of most likely tokens whose sum reaches top_p
  float min_p = 0.0f;               // keep tokens with p >= min_p * p of the most likely one
  float repetition_penalty = 1.0f;  // > 0; prompt and output tokens: logit / r if positive, else logit * r
  float presence_penalty = 0.0f;    // output tokens: logit - presence
  float frequency_penalty = 0.0f;   // output tokens: logit - frequency * count
  uint64_t seed = 0;
  uint32_t choice = 0;              // index of this completion among the n of its request
};

// InvalidArgument naming the field, the value found and the range wanted.
Status validate(const SamplingParams& params);

// What a row brings beyond its parameters. Spans live as long as the call.
struct SampleRow {
  SamplingParams params;
  int64_t position = 0;                          // position of the token to be sampled in its sequence
  std::span<const int32_t> prompt_tokens;        // for repetition_penalty
  std::span<const int32_t> output_tokens;        // for all three penalties
  std::span<const LogitBias> logit_bias;
  std::span<const uint32_t> allowed;             // bitset over the vocabulary, bit t % 32 of word t / 32; empty: all
  int32_t top_logprobs = 0;                      // how many of the most likely tokens to report
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;
};

// What a row gets. `top` has room for top_logprobs entries, most likely first.
struct SampleResult {
  int32_t token = -1;
  float logprob = 0;       // of `token`, from the raw logits: log softmax before penalties, bias and temperature
  std::span<TokenLogprob> top;
};

// For every row r: logits -> allowed tokens -> logit_bias -> repetition, presence, frequency penalty ->
// temperature -> top-k -> top-p -> min-p -> draw.
//   logits [rows, vocab] f32, not changed
//   rows, results [rows]
// Numerics: f32 logits, f64 sums in a fixed order. NaN logits are Internal (the model is broken), as is a
// row whose allowed tokens are all at -inf.
// Errors: InvalidArgument for parameters out of range, token ids outside the vocabulary, an empty allowed set.
struct SampleArgs {
  ConstTensorView logits;
  std::span<const SampleRow> rows;
  std::span<SampleResult> results;
};

// Scratch of sample_cpu.
int64_t sample_cpu_workspace_bytes(int64_t vocab, int threads);
Status sample_ref(const SampleArgs& args, ExecContext& exec);
Status sample_cpu(const SampleArgs& args, ExecContext& exec);

}  // namespace hearth
