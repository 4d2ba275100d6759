// SPDX-License-Identifier: Apache-2.0
// DeviceSampler: samples from logits where they lie, and brings tokens back instead of logits. Owns the block that the
// rows travel in, the device's scratch and the verdicts, all of it planned at creation.
// One owner; one call at a time, over one queue. Samples may be begun behind one that is under way, kMostBegun in all.
#pragma once

#include <array>

#include "hearth/kernels/sample/sample_packed.h"
#include "hearth/memory/memory.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

using SamplePackedOp = Status (*)(const SamplePackedArgs&, ExecContext&);

class DeviceSampler {
 public:
  struct Plan {
    int64_t rows = 0, vocab = 0;
    int64_t adjusted_rows = 0;       // at once, that change logits: bias, penalties, allowed or banned tokens
    int64_t list_words = 0;          // of the lists of all rows at once
    int64_t slots = 0, context = 0;  // of the histories that stay on the device, and their tokens
  };
  DeviceSampler() = default;
  // ResourceExhausted where it does not fit. REQUIRES: plan.vocab at most kMaxPackedVocab.
  static Result<DeviceSampler> create(const Memory& memory, SamplePackedOp op, const Plan& plan);

  // Whether the plan holds these rows, each by itself; else the CPU's sampler is for them.
  bool takes(std::span<const SampleRow> rows) const;
  // As sample_cpu(), for logits in the device's memory that the queue's work before writes, in as many calls of the op as
  // the rows' lists want. Waits for the queue. After an error of the device it knows no history.
  // REQUIRES: takes(args.rows); exec is the queue's.
  Status sample(const SampleArgs& args, Queue& queue, ExecContext exec);

  // The same in halves. begin() puts the work into the queue and waits for nothing; end() makes the results of the oldest
  // that was begun, once the queue is through with it. `args.rows` and `results` stay until then.
  // REQUIRES: takes_at_once(args.rows); where a row reads its history, all that was begun has ended.
  static constexpr int64_t kMostBegun = 2;
  bool takes_at_once(std::span<const SampleRow> rows) const;
  Status begin(const SampleArgs& args, Queue& queue, ExecContext exec);
  Status end();
  // In place of end(), where the device did not come so far: it knows no history.
  void drop();
  // The ids of what was begun last, on the device.
  SampledIds ids() const;

  // For benchmarks: what sample() hands to the op, after a call of it.
  SamplePackedArgs packed(ConstTensorView logits) const;

 private:
  std::optional<int64_t> bytes_of(std::span<const SampleRow> rows) const;  // packed; nothing where they do not fit
  Status validate_fresh(const SampleArgs& args);
  Status enqueue(const SampleArgs& args, Queue& queue, ExecContext exec);

  Plan plan_;
  SamplePackedOp op_ = nullptr;
  SampleHistories known_;
  std::vector<SampleRow> fresh_rows_;  // of a call, with what the device does not know of their histories
  struct Begun {
    SampleArgs args;
    Buffer block, results;  // the host's
  };
  std::array<Begun, kMostBegun> turns_;
  int64_t begun_ = 0, ended_ = 0;
  Buffer block_;    // the packed rows
  Buffer results_;  // verdicts, then candidates
  Buffer scratch_;  // of changed logits
  Buffer histories_;
};

}  // namespace hearth
