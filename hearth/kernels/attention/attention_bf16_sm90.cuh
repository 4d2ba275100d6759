// SPDX-License-Identifier: Apache-2.0
// What the two BF16 attention kernels share: their parameters, and how keys and values come from the paged cache. One
// tensor map serves all blocks: its third coordinate is an address in units of 64 bytes, so that a block may lie
// anywhere in the pool.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/step.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"

namespace hearth::sm90 {

struct Bf16AttentionParams {
  const __nv_bfloat16* q;
  __nv_bfloat16* out;
  int64_t q_stride, out_stride;
  DeviceStep step;
  // Of the layer's keys and values from a block's start, and from a head to the next; in units of 64 bytes.
  int key_units, value_units, head_units;
  int block_shift;  // log2 of the tokens of a block
  int box_shift;    // log2 of the tokens of a copy: a block's, or a stage's where that is less
  float* partials;  // decode: [slots, partial_floats]
  int64_t partial_floats;
  int slots;
  uint32_t* counter;  // prefill: of tiles taken
  int heads, kv_heads, group;
  int window;        // 0: all
  float scale_log2;  // scores times this are logarithms to base 2
};

__device__ __forceinline__ int first_seen(int position, int window) {
  return window > 0 ? max(0, position - window + 1) : 0;
}

// Where the copy that begins at `key` comes from: the token within its block, and the block's first byte in units.
struct KvPlace {
  int token, units;
};
__device__ __forceinline__ KvPlace find_kv(const Bf16AttentionParams& p, int sequence, int key) {
  const int64_t block = past_l1(p.step.block_table + sequence * p.step.block_table_stride + (key >> p.block_shift));
  return {key & ((1 << p.block_shift) - 1), static_cast<int>(block / kKvUnitBytes)};
}

// Two sums of V over different keys become one; scores are logarithms to base 2. The first: -inf, 0, 0.
struct Merge2 {
  float largest;        // of both
  float kept, arrived;  // factors of the running and the new sums

  __device__ __forceinline__ Merge2(float running, float chunk)
      : largest(fmaxf(running, chunk)), kept(exp2_fast(running - largest)), arrived(exp2_fast(chunk - largest)) {}
  __device__ __forceinline__ float operator()(float running, float chunk) const {
    return fmaf(running, kept, __fmul_rn(chunk, arrived));
  }
};

}  // namespace hearth::sm90
