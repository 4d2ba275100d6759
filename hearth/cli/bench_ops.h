// SPDX-License-Identifier: Apache-2.0
// What `hearth bench ops` measures: one op of a backend's table on one shape, called as models call it, each call
// behind the one before. Inputs lie in several sets that take turns and together exceed the cache (at most kMostSets of
// them: what the smallest ops read may stay in it, as it does in a model), and where the memory's queue records, the
// calls are one recording. One thread, which owns everything here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/kernels/op_table.h"
#include "hearth/memory/memory.h"
#include "hearth/model/config.h"

namespace hearth {

// The sizes of a model that its ops' shapes follow from.
struct OpSizes {
  std::string config;
  int64_t hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0;
};
OpSizes op_sizes(std::string name, const ModelConfig& config);
// Llama-3-8B and Llama-2-7B: those of the tables that hearth compares itself with.
std::vector<OpSizes> usual_op_sizes();

// One op on one shape, its memory included.
struct OpCase {
  std::string bench;            // "op.linear"
  nlohmann::json fields;        // of its line: what makes it this case
  std::string format, shape;    // of its row in the table
  double bytes = 0, flops = 0;  // of a call: read and written, at least
  int64_t sets = 1;             // of inputs
  int64_t set_bytes = 0;        // of one of them
  bool on_host = false;         // runs on the host, wherever the table's memory is
  std::function<Status(int64_t set)> run;
};

// What of a case's line is not its times or its surroundings'. `bytes_per_s` as OpRig::bytes_per_s(), 0: unknown.
nlohmann::json op_line(const OpCase& one, double bytes_per_s, int64_t calls, bool recorded);

// Many calls of a case, one recording where the queue records.
struct OpReplay {
  Queue* queue = nullptr;
  int64_t calls = 0;
  double estimate_us = 0;         // of a call
  std::function<Status()> round;  // as calls
  std::unique_ptr<Recording> recording;

  // What a replay puts into the queue.
  std::function<Status()> body() const;
};

struct OpTimes {
  double us = 0, us_p10 = 0, us_p90 = 0;  // of a call, over the rounds
  int64_t calls = 0, rounds = 0;          // in a round; measured
  bool recorded = false;
};

// Memory, queue and clock of the cases.
class OpRig {
 public:
  static constexpr int64_t kMostSets = 1024;

  // `cache_bytes`: what inputs exceed three times; 0: the memory's. Errors of the table's prepare() and memory.
  static Result<OpRig> create(const OpTable& ops, ThreadPool& pool, const Clock& clock, DType activation,
                              int64_t cache_bytes = 0);

  const OpTable& ops() const { return *ops_; }
  DType activation() const { return activation_; }
  ThreadPool& pool() const { return *pool_; }
  Queue& queue() const { return *queue_; }
  const Memory& memory() const { return ops_->memory(); }
  // Sets of that many bytes that together are three times the cache, at least 1.
  int64_t sets_for(int64_t set_bytes, int64_t most = kMostSets) const;
  // The context of an op with scratch at `workspace`.
  ExecContext exec(const Buffer& workspace) const;

  // Where the ops want it: `count` values, normally distributed, of f32, f16, bf16 or e4m3; at most 1 MiB of them
  // differ.
  Result<Buffer> numbers(DType dtype, int64_t count, float width) const;
  // Copies the first `piece_bytes` over the rest, all of it `total_bytes`.
  Status repeat(std::byte* at, int64_t piece_bytes, int64_t total_bytes) const;
  // Reading speed for the floors.
  Result<double> bytes_per_s() const;

  // As many calls as are neither too short to time nor slow. Goes before the rig and `one`.
  Result<OpReplay> prepare(const OpCase& one) const;
  // Microseconds of a call in each of `count` replays, one behind the other: the first finds the device idle.
  Result<std::vector<double>> replay(const OpReplay& replay, int64_t count) const;
  Result<OpTimes> time(const OpCase& one, int64_t rounds) const;

 private:
  OpRig() = default;
  const OpTable* ops_ = nullptr;
  ThreadPool* pool_ = nullptr;
  const Clock* clock_ = nullptr;
  DType activation_ = DType::kF32;
  int64_t cache_bytes_ = 0;
  std::vector<float> normals_;  // what numbers() are made of: drawing them anew would take most of a run
  std::unique_ptr<Queue> queue_, host_queue_;
};

// The cases of one op. Null where the backend has no op for the format, or the op does not do the shape.
using MaybeCase = Result<std::unique_ptr<OpCase>>;

struct LinearShape {
  std::string layer;
  int64_t n = 0, k = 0;
  bool adds_residual = false, to_logits = false;
  bool behind_rounding = false;  // the op in front of it may round for it
};
std::vector<LinearShape> linear_shapes(const OpSizes& sizes);
// f32, f16, bf16 and those of linear_bench_formats.h; InvalidArgument lists them.
Result<WeightFormat> find_op_format(const std::string& name);
struct LinearCall;
// A weight in all its sets, for cases of any number of tokens. Null where there is no op for the format.
class LinearBench {
 public:
  static Result<std::unique_ptr<LinearBench>> create(const OpRig& rig, const OpSizes& sizes, const LinearShape& shape,
                                                     const std::string& format);
  // Outlives what it returns. x is rounded already where a model's would be.
  MaybeCase make(int64_t tokens) const;
  // What such a case runs.
  Result<std::shared_ptr<LinearCall>> call(int64_t tokens) const;
  int64_t stored_bytes() const { return weights_.front().format.stored_bytes(shape_.n, shape_.k); }

 private:
  explicit LinearBench(const OpRig& rig) : rig_(rig) {}
  const OpRig& rig_;
  std::string config_, format_name_;
  LinearShape shape_;
  const LinearOp* op_ = nullptr;
  Buffer memory_;
  std::vector<LinearWeight> weights_;  // one a set
};

// Gate and up, silu_mul and down, one behind the other: x comes as values, the product's input as a model's would. Null
// where there is no op for the format.
class FfnBench {
 public:
  static Result<std::unique_ptr<FfnBench>> create(const OpRig& rig, const OpSizes& sizes, const std::string& format);
  // Outlives what it returns.
  MaybeCase make(int64_t tokens) const;

 private:
  FfnBench(const OpRig& rig, OpSizes sizes, std::string format)
      : rig_(rig), sizes_(std::move(sizes)), format_(std::move(format)) {}
  const OpRig& rig_;
  OpSizes sizes_;
  std::string format_;
  std::unique_ptr<LinearBench> gate_up_, down_;
};

MaybeCase embedding_case(const OpRig& rig, const OpSizes& sizes, int64_t tokens);
// `rounded`: the output is E4M3, for a linear that takes it so. Null where the backend has none.
MaybeCase rmsnorm_case(const OpRig& rig, const OpSizes& sizes, int64_t tokens, bool rounded);
// With the residual sum in front.
MaybeCase rmsnorm_residual_case(const OpRig& rig, const OpSizes& sizes, int64_t tokens);
MaybeCase silu_mul_case(const OpRig& rig, const OpSizes& sizes, int64_t tokens, bool rounded);
MaybeCase rope_table_case(const OpRig& rig, const OpSizes& sizes, int64_t tokens);
// Up to kMostRows tokens are one of each of as many sequences, more are of one.
inline constexpr int64_t kMostRows = 256;
MaybeCase rope_kv_write_case(const OpRig& rig, const OpSizes& sizes, KvFormatId kv, int64_t tokens);
// decode: the last token of `batch` contexts of `length`; else all of their tokens.
struct AttentionShape {
  bool decode = false;
  int64_t batch = 0, length = 0;
};
MaybeCase attention_case(const OpRig& rig, const OpSizes& sizes, KvFormatId kv, const AttentionShape& shape);
// `greedy`, else temperature 0.8, top-k 50, top-p 0.9. Where the table samples on its device alone: there.
MaybeCase sample_case(const OpRig& rig, const OpSizes& sizes, int64_t rows, bool greedy);

}  // namespace hearth
