// SPDX-License-Identifier: Apache-2.0
// Prefill attention over KV in FP8 and 4 bits on Hopper's tensor cores: what it takes. Host code without CUDA. A row's
// bits depend on its query, on the keys that it sees and on whether its sequence has several tokens in the step
// (attention_bf16_sm90.h, I2 and I3).
#pragma once

#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/validate.h"

namespace hearth::sm90 {

// Whether attention_coded_prefill_sm90() serves the call's sequences of several tokens: activations in bf16, KV in FP8
// or 4 bits, all else as takes_attention_bf16().
bool takes_attention_coded(const AttentionArgs& args);

// Rows of the sequences with several tokens in the step; all others are another kernel's, and there must be one such.
// Numerics: codes of keys and values are exact in their tiles, with the sums in f32; queries, after the layout's
// transform in f32, are rounded to 11 bits (f16, each row by a power of two of its own), which is exact where there is
// none; steps, bases and scales are applied in f32; weights, for 4 bits times the value's step, are rounded to 8 bits,
// for FP8 to 11. A NaN in V at a later position than a row's spoils the row where both lie in one tile of a prompt.
// REQUIRES: validate(args), takes_attention_coded(args); `scales` from check_kv_scales().
Status attention_coded_prefill_sm90(const AttentionArgs& args, const KvScales& scales, ExecContext& exec);

}  // namespace hearth::sm90
