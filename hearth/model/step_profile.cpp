// SPDX-License-Identifier: Apache-2.0
// The parts are told apart in front of the ops: the step runs over a table whose every function looks at a gate first,
// and passes on the calls of one part alone. A linear's part follows from its weight.
#include "hearth/model/step_profile.h"

#include <map>
#include <optional>

#include "hearth/base/check.h"
#include "hearth/model/step_work.h"

namespace hearth {
namespace {

// What is behind the gated functions, which have no argument for it: set by the thread that runs the step, and only
// while it does.
struct Gate {
  std::optional<StepPart> only;
  int64_t passed = 0;
  const OpTable* table = nullptr;
  std::map<const LinearWeight*, std::pair<StepPart, const LinearOp*>> linears;

  const std::pair<StepPart, const LinearOp*>& linear(const LinearWeight* weight) const {
    const auto found = linears.find(weight);
    HEARTH_CHECK(found != linears.end(), "a linear that is none of the model's");
    return found->second;
  }
  bool passes(StepPart part) {
    if (part != only) return false;
    ++passed;
    return true;
  }
};
thread_local Gate* active_gate = nullptr;

class ActiveGate {
 public:
  explicit ActiveGate(Gate& gate) { active_gate = &gate; }
  ~ActiveGate() { active_gate = nullptr; }
  ActiveGate(const ActiveGate&) = delete;
  ActiveGate& operator=(const ActiveGate&) = delete;
};

template <auto kOp, StepPart kPart, class Args>
Status gated(const Args& args, ExecContext& exec) {
  return active_gate->passes(kPart) ? (active_gate->table->*kOp)(args, exec) : Status();
}

Status gated_linear(const LinearArgs& args, ExecContext& exec) {
  const auto& [part, op] = active_gate->linear(args.weight);
  return active_gate->passes(part) ? op->run(args, exec) : Status();
}
Status gated_parts(std::span<const LinearArgs> parts, ExecContext& exec) {
  const auto& [part, op] = active_gate->linear(parts.front().weight);
  return active_gate->passes(part) ? op->run_parts(parts, exec) : Status();
}

}  // namespace

std::string_view step_part_name(StepPart part) {
  constexpr std::array<std::string_view, kStepParts> kNames = {"embedding",     "rope_table", "norm",   "qkv",
                                                               "rope_kv_write", "attention",  "o",      "gate_up",
                                                               "silu_mul",      "down",       "lm_head"};
  return kNames[static_cast<size_t>(part)];
}

class StepProfiler {
 public:
  StepProfiler(const Model& model, Comm& comm, ForwardBuffers& buffers, const ProfileArgs& args)
      : model_(model), comm_(comm), buffers_(buffers), args_(args) {
    build_ops();
  }

  Result<StepProfile> run() {
    // Checks the step, and leaves what a step leaves in the buffers.
    HEARTH_TRY_ASSIGN(const ConstTensorView logits, buffers_.run(model_, *args_.batch, *args_.kv, comm_));
    HEARTH_TRY_ASSIGN(host_queue_, host_memory().create_queue());
    HEARTH_TRY(queue().synchronize());
    StepWork work{&model_, *args_.batch, *args_.kv, buffers_.step_exec_, buffers_.block_, buffers_.logits_, nullptr};
    HEARTH_TRY_ASSIGN(work.batch, stage());
    const auto whole = [work]() mutable {
      SingleRank alone;
      return work.run(alone);
    };
    HEARTH_TRY_ASSIGN(profile_.step_us, time(queue(), whole));
    if (!args_.rows.empty()) HEARTH_TRY(time_sampling(logits));
    work.other_ops = &ops_;
    for (int part = 0; part < kStepParts; ++part) {
      gate_.only = static_cast<StepPart>(part), gate_.passed = 0;
      const ActiveGate active(gate_);
      SingleRank alone;
      HEARTH_TRY(work.run(alone));
      StepPartTime found{.part = *gate_.only, .calls = gate_.passed, .us = {}};
      if (found.calls == 0) continue;
      HEARTH_TRY_ASSIGN(found.us, time(queue(), [work]() mutable {
                          SingleRank one;
                          return work.run(one);
                        }));
      profile_.parts.push_back(std::move(found));
    }
    return std::move(profile_);
  }

 private:
  Queue& queue() const { return buffers_.queue_ ? *buffers_.queue_ : *host_queue_; }

  void build_ops() {
    ops_.table = model_.ops();
    gate_.table = &model_.ops();
    ops_.table.embedding = gated<&OpTable::embedding, StepPart::kEmbedding, EmbeddingArgs>;
    ops_.table.rope_table = gated<&OpTable::rope_table, StepPart::kRopeTable, RopeTableArgs>;
    ops_.table.rmsnorm = gated<&OpTable::rmsnorm, StepPart::kNorm, RmsNormArgs>;
    ops_.table.rope_kv_write = gated<&OpTable::rope_kv_write, StepPart::kRopeKvWrite, RopeKvWriteArgs>;
    ops_.table.attention = gated<&OpTable::attention, StepPart::kAttention, AttentionArgs>;
    ops_.table.silu_mul = gated<&OpTable::silu_mul, StepPart::kSiluMul, SiluMulArgs>;
    const auto add = [&](const Linear& linear, LinearOps& ops, StepPart part) {
      for (size_t i = 0; i < ops.size(); ++i) {
        gate_.linears[&linear.parts[i]] = {part, ops[i]};
        // One for each op: parts of the same op may run together.
        const auto [gated_op, is_new] = gated_linears_.try_emplace(ops[i], *ops[i]);
        if (is_new) gated_op->second.run = gated_linear;
        if (is_new && gated_op->second.run_parts) gated_op->second.run_parts = gated_parts;
        ops[i] = &gated_op->second;
      }
    };
    const ModelWeights& weights = model_.weights();
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      const LayerWeights& layer = weights.layers[i];
      const DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
      BlockOps& ops = ops_.layers.emplace_back(model_.layer_ops(static_cast<int64_t>(i)));
      add(layer.qkv, ops.qkv, StepPart::kQkv);
      add(layer.o, ops.o, StepPart::kO);
      add(ffn.gate_up, ops.gate_up, StepPart::kGateUp);
      add(ffn.down, ops.down, StepPart::kDown);
    }
    ops_.lm_head = model_.lm_head_op();
    add(weights.lm_head, ops_.lm_head, StepPart::kLmHead);
  }

  // The step's arrays where the ops want them, as the step itself had them.
  Result<StepBatch> stage() {
    if (!buffers_.queue_) return *args_.batch;
    const DecodeSteps::Entry* const decode = buffers_.decode_.find(*args_.batch, *args_.kv);
    HEARTH_TRY_ASSIGN(const StepBatch staged, decode
                                                  ? buffers_.staging_.stage_padded(*args_.batch, decode->shape, queue())
                                                  : buffers_.staging_.stage(*args_.batch, queue()));
    HEARTH_TRY(queue().synchronize());
    return staged;
  }

  Result<std::vector<double>> time(Queue& queue, const std::function<Status()>& body) {
    constexpr int64_t kWarmRounds = 2;
    Result<std::unique_ptr<Recording>> recording = queue.record(body);
    if (!recording && recording.error().code != ErrorCode::kUnsupported) return std::move(recording).error();
    profile_.recorded = static_cast<bool>(recording);
    const std::function<Status()> replay = [&] { return (*recording)->run(); };
    HEARTH_TRY_ASSIGN(std::vector<double> us,
                      queue.time_each(kWarmRounds + args_.rounds, recording ? replay : body, *args_.clock));
    us.erase(us.begin(), us.begin() + kWarmRounds);
    return us;
  }

  Status time_sampling(ConstTensorView logits) {
    std::vector<SampleResult> results(args_.rows.size());
    const bool recorded = profile_.recorded;
    if (buffers_.sampler_.takes(args_.rows)) {
      profile_.samples_on_device = true;
      // Packs the rows, which the op then finds on the device.
      HEARTH_TRY(buffers_.sampler_.sample({.logits = logits, .rows = args_.rows, .results = results}, queue(),
                                          buffers_.step_exec_));
      HEARTH_TRY_ASSIGN(profile_.sample_us, time(queue(), [&] {
                          return model_.ops().sample_packed(buffers_.sampler_.packed(logits), buffers_.step_exec_);
                        }));
    } else {
      HEARTH_TRY_ASSIGN(const ConstTensorView on_host, buffers_.logits_on_host(logits));
      HEARTH_TRY_ASSIGN(profile_.sample_us, time(*host_queue_, [&] {
                          return model_.ops().sample({.logits = on_host, .rows = args_.rows, .results = results},
                                                     buffers_.exec());
                        }));
    }
    profile_.recorded = recorded;
    return {};
  }

  const Model& model_;
  Comm& comm_;
  ForwardBuffers& buffers_;
  const ProfileArgs& args_;
  StepOps ops_;
  std::map<const LinearOp*, LinearOp> gated_linears_;
  Gate gate_;
  std::unique_ptr<Queue> host_queue_;
  StepProfile profile_;
};

Result<StepProfile> profile_step(const Model& model, Comm& comm, ForwardBuffers& buffers, const ProfileArgs& args) {
  if (model.shard().size != 1)
    return unsupported("a profile of one rank of {}; wanted a whole model", model.shard().size);
  return StepProfiler(model, comm, buffers, args).run();
}

}  // namespace hearth
