// SPDX-License-Identifier: Apache-2.0
// Sampling: one token per row of logits, by the parameters of the row. The text of a request depends on
// neither batch, threads nor backend: probabilities are integers, so that every sum is exact in any order,
// random numbers are counter-based, and every tie goes to the smaller id. The exact definition, written
// for whoever implements another backend, is docs/formats/sampling.md; its arithmetic is sample_math.h.
#pragma once

#include <cstdint>
#include <span>

#include "hearth/base/result.h"
#include "hearth/kernels/exec.h"
#include "hearth/tensor/shape.h"

namespace hearth {

inline constexpr int64_t kMaxSampleVocab = (int64_t{1} << 23) - 1;  // sums of masses stay below 2^63
inline constexpr int32_t kMaxTopLogprobs = 128;                     // of the op; a server may allow less
inline constexpr int32_t kNoLogprobs = -1;
// Below this temperature the largest logit is taken, as vLLM does.
inline constexpr float kGreedyTemperature = 1e-5f;

struct LogitBias {
  int32_t token = 0;
  float bias = 0;  // in [-100, 100]
};

// Parameters of one row. The defaults sample from the plain distribution.
struct SamplingParams {
  float temperature = 1.0f;         // [0, 1000]; below kGreedyTemperature: greedy, whatever top_k, top_p, min_p say
  int32_t top_k = 0;                // keep the k most likely tokens; 0 or -1: all
  float top_p = 1.0f;               // (0, 1]; keep the smallest set of most likely tokens whose sum reaches top_p
  float min_p = 0.0f;               // [0, 1]; keep tokens with p >= min_p * p of the most likely one
  float repetition_penalty = 1.0f;  // > 0; prompt and output tokens: logit / r if positive, else logit * r
  float presence_penalty = 0.0f;    // [-2, 2]; output tokens: logit - presence
  float frequency_penalty = 0.0f;   // [-2, 2]; output tokens: logit - frequency * count
  uint64_t seed = 0;
  uint32_t choice = 0;  // index of this completion among the n of its request

  bool greedy() const { return temperature < kGreedyTemperature; }
  bool penalises() const { return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f; }
};

// InvalidArgument naming the field, the value found and the range wanted.
Status validate(const SamplingParams& params);

// What a row brings beyond its parameters. Spans live as long as the call.
struct SampleRow {
  SamplingParams params;
  int64_t position = 0;                    // position of the token to be sampled in its sequence, >= 0
  std::span<const int32_t> prompt_tokens;  // for repetition_penalty; read only if a penalty is set
  std::span<const int32_t> output_tokens;  // for all three penalties; read only if a penalty is set
  // A device keeps these tokens from call to call, in a slot that no other row of a call has: a sequence has the same
  // tokens as in the last call and more outputs behind them. -1: none, and the CPU samples the row if it has penalties.
  int64_t slot = -1;
  uint64_t sequence = 0;                  // in the slot, by a number that none there had before; not 0
  std::span<const LogitBias> logit_bias;  // each token at most once
  std::span<const int32_t> banned;        // tokens that may not be chosen (min_tokens, bad words); may repeat
  std::span<const uint32_t> allowed;      // bitset over the vocabulary, bit t % 32 of word t / 32; empty: all.
                                          // ceil(vocab / 32) words or more; bits past the vocabulary are ignored
  int32_t forced_token = -1;              // >= 0: this token is taken, nothing is drawn (scoring a given text)
  int32_t top_logprobs = 0;               // how many of the most likely tokens to report, at most kMaxTopLogprobs;
                                          // kNoLogprobs: not even the logprob of the token (saves a pass)
};

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;
};

// How a row ended. A bad row never disturbs the others.
enum class SampleOutcome : uint8_t {
  kOk,
  kBadLogits,  // a NaN or +inf, or every token that could be chosen is at -inf: the model is broken
  kNoToken,    // `allowed` and `banned` leave no token
};

// What a row gets. Unless the outcome is kOk, token is -1 and the rest is unspecified.
struct SampleResult {
  int32_t token = -1;
  SampleOutcome outcome = SampleOutcome::kOk;
  float logprob = 0;            // of `token`, from the raw logits: log softmax before all adjustments; 0 for
                                // kNoLogprobs. -inf is possible for a forced token
  std::span<TokenLogprob> top;  // room for top_logprobs entries; filled most likely first, ties by id
};

// For every row r: logits -> allowed and banned tokens -> logit_bias -> repetition, frequency, presence
// penalty -> temperature -> min-p -> top-k -> top-p -> draw (vLLM's order: each filter sees the
// distribution renormalised over what the one before it left).
//   logits [rows, vocab] f32, not changed; vocab at most kMaxSampleVocab
//   rows, results [rows]
// Numerics: f32 adjustments with single rounding per operation; probabilities in 64-bit fixed point;
// logprobs in f64 from the exact integer sum, rounded to f32. Tokens and kept sets are bit-exact across
// backends, logprobs within 1 ulp.
// Errors: InvalidArgument for parameters out of range, token ids outside the vocabulary, a token biased
// twice, wrong sizes: nothing is written. Else every row is done, and the first row whose outcome is not
// kOk is reported: Internal for kBadLogits, InvalidArgument for kNoToken.
struct SampleArgs {
  ConstTensorView logits;
  std::span<const SampleRow> rows;
  std::span<SampleResult> results;
};

// The checks of an op call that need no look at the logits. sample_ref and sample_cpu begin with it; a
// server calls it once per request with an empty history.
Status validate(const SampleRow& row, int64_t vocab);
Status validate(const SampleArgs& args);

// The error that an op call returns for outcomes: that of the first row that is not kOk.
Status sample_status(std::span<const SampleResult> results);

// Scratch of sample_cpu.
int64_t sample_cpu_workspace_bytes(int64_t vocab, int threads);
Status sample_ref(const SampleArgs& args, ExecContext& exec);
Status sample_cpu(const SampleArgs& args, ExecContext& exec);

}  // namespace hearth
