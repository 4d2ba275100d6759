// SPDX-License-Identifier: Apache-2.0
// BF16 attention on Hopper's tensor cores: what it takes, how its work is split. Host code without CUDA, shared by the
// kernels, the selector and the tests.
//   I1. Decode: keys are taken in chunks of kDecodeChunk that begin at multiples of it, by warps that have 16 keys each
//       of stages of kDecodeStage; chunks are merged in their order, by whoever does it.
//   I2. Prefill: keys are taken in tiles of kPrefillKeys that begin at multiples of it, the last one first.
//   I3. So a row's bits depend on its query, on the keys that it sees and on whether its sequence has one token in the
//       step or several: not on other rows, the split, the batch or where a prompt is cut (pieces of one token
//       excepted).
#pragma once

#include <cstdint>

#include "hearth/kernels/attention/attention.h"

namespace hearth::sm90 {

// Most query heads of a kv head, and most sequences, that the kernels take.
inline constexpr int kBf16MaxGroup = 8;
inline constexpr int kBf16MaxSequences = 1024;
// Bytes of which every offset and stride within the pool is a multiple: what a tensor map counts in.
inline constexpr int64_t kKvUnitBytes = 64;

// Keys of a work item of decode, of a stage of its pipeline (keys and values of 32 KiB), and warps that share a stage,
// 16 keys each.
inline constexpr int kDecodeChunk = 256;
template <int kDim>
inline constexpr int kDecodeStage = 8192 / kDim;
template <int kDim>
inline constexpr int kDecodeWarps = kDecodeStage<kDim> / 16;
inline constexpr int kDecodeStages = 6;

// Rows of a tile of prefill, each a query head of a token, and the keys of a step over it.
inline constexpr int kPrefillRows = 128;
inline constexpr int kPrefillKeys = 128;
inline constexpr int kPrefillStages = 2;

// Floats that a chunk leaves for each query head: its sum of V, its largest score, its sum of weights.
inline constexpr int64_t decode_partial_floats(int64_t group, int64_t head_dim) { return group * (head_dim + 2); }

// Whether attention_bf16_sm90() takes the call: activations and KV in bf16, heads of 64 or 128, up to 8 query heads a
// kv head, blocks of 8, 16, 32, ... tokens, all strides multiples of 64 bytes, rows of q and out of whole vectors.
bool takes_attention_bf16(const AttentionArgs& args);

}  // namespace hearth::sm90

namespace hearth {

// attention_sm90() for calls of which takes_attention_bf16() says that it serves them. Block offsets are multiples of
// 64 bytes below 128 GiB. With less scratch than decode's chunks need, one block takes all chunks of a kv head: slower,
// the same bits. Numerics: products of bf16, sums in f32; scores and softmax in f32; weights are rounded to bf16 before
// they meet V. A NaN or an infinity in V at a later position than a row's spoils the row where both lie in one tile of
// a prompt.
Status attention_bf16_sm90(const AttentionArgs& args, ExecContext& exec);

}  // namespace hearth
