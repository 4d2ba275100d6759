// SPDX-License-Identifier: Apache-2.0
// Model: configuration, weights and ops of one model on one backend, and its forward step.
//   I1. A Model is immutable after load; any number of step loops may use it, each with its own
//       ForwardBuffers. Requests hold it by shared_ptr to their last byte.
//   I2. A step allocates nothing: all memory is in ForwardBuffers, planned at creation.
//   I3. A row of logits depends on its own sequence alone, bit for bit: batched, chunked and single runs
//       agree.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/comm/comm.h"
#include "hearth/kernels/op_table.h"
#include "hearth/memory/memory.h"
#include "hearth/memory/step_staging.h"
#include "hearth/model/block.h"
#include "hearth/model/config.h"
#include "hearth/model/decode_step.h"
#include "hearth/model/weights.h"
#include "hearth/tensor/kv_layout.h"
#include "hearth/tensor/step_batch.h"

namespace hearth {

struct ModelOptions {
  DType activation = DType::kF32;  // kF32 or kBf16: the type of activations between ops
  Shard shard;
  LoadProgress progress;
  const std::atomic<bool>* stop = nullptr;  // as of WeightsOptions
};

class Model {
 public:
  // Loads config and weights and looks up every op. `pool` serves the loading only.
  static Result<std::shared_ptr<const Model>> load(const Checkpoint& checkpoint, const OpTable& ops,
                                                   const ModelOptions& options, ThreadPool& pool);

  // A model of `config` with seeded random weights of plausible scale, for benchmarks and tests; quantized where
  // `quantization` describes it.
  static Result<std::shared_ptr<const Model>> dummy(const ModelConfig& config, const OpTable& ops,
                                                    const ModelOptions& options, DType weight_dtype, uint64_t seed,
                                                    ThreadPool& pool, const Quantization* quantization = nullptr);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const OpTable& ops() const { return *ops_; }
  DType activation() const { return activation_; }
  // The KV format that the checkpoint was made for; nullopt: it names none.
  std::optional<KvFormatId> kv_format() const { return kv_format_; }
  const Shard& shard() const { return shard_; }
  // Heads on this rank.
  int64_t local_heads() const { return config_.heads / shard_.size; }
  int64_t local_kv_heads() const { return config_.kv_heads / shard_.size; }

  // The ops of every linear, looked up at load.
  const BlockOps& layer_ops(int64_t layer) const { return layer_ops_[static_cast<size_t>(layer)]; }
  const LinearOps& lm_head_op() const { return lm_head_op_; }

 private:
  Model() = default;
  static Result<std::shared_ptr<const Model>> bind(const ModelConfig& config, WeightSource& source, const OpTable& ops,
                                                   const ModelOptions& options, std::optional<KvFormatId> kv_format,
                                                   ThreadPool& pool);
  // Looks up all ops for the bound weights; Unsupported names the weight and format without one.
  Status bind_ops();
  // Packs the weights whose ops have an order of their own for them, in place. REQUIRES: bind_ops().
  Status pack_weights();

  ModelConfig config_;
  ModelWeights weights_;
  const OpTable* ops_ = nullptr;
  DType activation_ = DType::kF32;
  std::optional<KvFormatId> kv_format_;
  Shard shard_;
  std::vector<BlockOps> layer_ops_;
  LinearOps lm_head_op_;
};

// The largest step that buffers are planned for.
struct StepLimits {
  int64_t max_tokens = 512;      // tokens of a step
  int64_t max_logit_rows = 512;  // rows of logits of a step
  int64_t max_context = 0;       // tokens of a sequence; 0: the model's max_positions
  // Entries of the block table of a step, for a backend that must copy it; 0: max_tokens contexts in blocks of 16.
  int64_t max_block_entries = 0;
  bool samples = false;  // plan for forward_and_sample() on a device
  // Slots of rows to be sampled (SampleRow::slot), each with a list of max_context tokens at most on the device,
  // 8 bytes each.
  int64_t sample_slots = 0;
};

// Memory of one step loop. One owner; a step uses all of it.
class ForwardBuffers {
 public:
  static Result<ForwardBuffers> create(const Model& model, const StepLimits& limits, ThreadPool& pool);

  const StepLimits& limits() const { return limits_; }
  // For work between steps on the logits, in host memory.
  ExecContext& exec() { return exec_; }
  int64_t size_bytes() const { return memory_.size_bytes(); }

  // Records decode steps for each of `batches` sequences (decode_batches()) and each context (decode_contexts()), over
  // `kv` from now on. Each number of sequences runs once before, on the calling thread alone, so that nothing is
  // loaded or chosen in a recording.
  // Does nothing where the model's memory is the host's, its queue cannot record, the pool has no dummy block, or the
  // model is one rank of several. REQUIRES: `model` is the one of create(); no step is under way.
  Status record_decode(const Model& model, const KvView& kv, std::span<const int64_t> batches);

  // forward_and_sample() in two halves, so that a step can be put behind one that still runs. start() returns once the
  // step is in the device's queue; where rows are sampled on the host it has done all of it. finish() waits for the oldest
  // step that was started, and has its results. What was handed to start() stays until then, but for the arrays of
  // `batch`. Tokens below 0 name rows of the step that was started last, if that has not finished (SampledIds).
  // Errors: those of forward_and_sample(); a step whose start() failed is none.
  // REQUIRES: fewer than kMostUnderWay steps are; all have finished unless can_follow(rows).
  static constexpr int64_t kMostUnderWay = DeviceSampler::kMostBegun;
  Status start(const Model& model, const StepBatch& batch, const KvView& kv, Comm& comm,
               std::span<const SampleRow> rows, std::span<SampleResult> results);
  Status finish();
  // Whether finish() would not wait.
  Result<bool> is_done();
  int64_t under_way() const { return started_ - finished_; }
  // Whether a step that samples `rows` can be started before the one before has finished: no row's tokens so far are
  // read, and both are sampled where they run.
  bool can_follow(std::span<const SampleRow> rows) const;

 private:
  friend Result<ConstTensorView> forward(const Model&, const StepBatch&, const KvView&, Comm&, ForwardBuffers&);
  friend class StepProfiler;
  ForwardBuffers() = default;
  Status plan_copies(const Model& model, ThreadPool& pool);
  // Puts the step into the queue: as it was recorded if it was.
  Status run_on_device(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm);
  // Where the step's logits will be, once it has run: all of a checked step, waiting for nothing on a device.
  Result<ConstTensorView> run(const Model& model, const StepBatch& step, const KvView& kv, Comm& comm);
  // The step's logits where the host can read them, once they are there.
  Result<ConstTensorView> logits_on_host(ConstTensorView logits);

  StepLimits limits_;
  Buffer memory_;           // where the ops want it
  ExecContext exec_;        // the host's
  ExecContext step_exec_;   // the ops'; the same on the host
  BlockBuffers block_;      // for max_tokens; normed also for max_logit_rows
  void* logits_ = nullptr;  // [max_logit_rows, vocab] f32
  // Where memory_ is not the host's: the way there and back.
  std::unique_ptr<Queue> queue_;
  StepStaging staging_;
  Buffer host_logits_, host_workspace_;
  DeviceSampler sampler_;
  struct UnderWay {
    bool sampled = false;  // by start()
    Status status;         // then
    std::unique_ptr<QueueMark> mark;
  };
  std::array<UnderWay, kMostUnderWay> turns_;
  int64_t started_ = 0, finished_ = 0;
  DecodeSteps decode_;  // goes before queue_
};

// One step: runs the batch's tokens through the model, writes their K and V, and returns the logits
// [R, vocab] f32 of batch.logit_rows, in the buffers' memory until the next step.
// Errors: InvalidArgument where the batch contradicts itself, the limits or the KV layout.
Result<ConstTensorView> forward(const Model& model, const StepBatch& batch, const KvView& kv, Comm& comm,
                                ForwardBuffers& buffers);

// forward(), then the sampling of rows [R] to results [R] (sample.h). On a device the logits stay there, unless the
// rows bring more with them than its sampler is planned for: then they are sampled on the host.
// Errors: those of forward() and of the op `sample`.
Status forward_and_sample(const Model& model, const StepBatch& batch, const KvView& kv, Comm& comm,
                          ForwardBuffers& buffers, std::span<const SampleRow> rows, std::span<SampleResult> results);

}  // namespace hearth
