// SPDX-License-Identifier: Apache-2.0
// How attention_cpu divides its work and its scratch memory. The keys of a sequence are cut into tiles of
// kTileKeys and partitions of kPartitionKeys, both counted from position 0, and every row goes through
// its tiles and partitions in ascending order. So what a row computes depends on its position alone:
//   I1. Which rows share a unit, which thread runs it and whether its partitions run apart or one after
//       the other changes no bit of any row.
// A unit is a block of rows of one sequence that read the same kv head; row r of a sequence is its query
// token r / group with head kv_head * group + r % group.
#pragma once

#include <cstdint>

#include "hearth/kernels/attention/attention.h"
#include "hearth/kernels/validate.h"

namespace hearth::cpu {

struct AttentionUnit {
  int64_t sequence = 0;
  int64_t kv_head = 0;
  int64_t row_begin = 0, row_end = 0;
};

struct AttentionPlan {
  static constexpr int64_t kTileKeys = 64;
  static constexpr int64_t kPartitionKeys = 128;
  static constexpr int64_t kMaxRows = 64;
  // Units of at most so many rows may have their partitions computed apart.
  static constexpr int64_t kSplitRows = 8;
  // Channels are padded to whole vectors of 16 floats in scratch memory.
  static constexpr int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

  const AttentionArgs* args = nullptr;
  KvScales scales;    // those that the format uses
  int64_t group = 0;  // heads per kv head
  int64_t rows_per_unit = 0;
  int64_t units = 0;
  int64_t max_partitions = 0;  // of the longest context
  bool split = false;          // partitions are tasks of their own, merged afterwards
  float* partials = nullptr;   // split: for (unit, partition): partial_floats()

  // Plans for a team of `threads`; no pointers yet.
  static AttentionPlan make(const AttentionArgs& args, int threads);

  AttentionUnit unit(int64_t index) const;
  // The first key that the query token `token` of sequence s sees, and the one past its last.
  int64_t key_begin(int64_t s, int64_t token) const;
  int64_t key_end(int64_t s, int64_t token) const;

  // Floats of one thread's scratch, and of one (unit, partition): O rows, then maxima, then sums.
  static int64_t scratch_floats(int64_t head_dim);
  int64_t partial_floats() const { return rows_per_unit * (padded(args->kv.layout.head_dim) + 2); }
};

}  // namespace hearth::cpu
