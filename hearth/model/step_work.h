// SPDX-License-Identifier: Apache-2.0
// A step's ops, in their order, over memory that the caller keeps: what forward() runs, records and replays, and
// profile_step() takes apart. A value: a recording keeps one. Internal to this library.
#pragma once

#include <vector>

#include "hearth/model/model.h"

namespace hearth {

// Ops to run in place of the model's own.
struct StepOps {
  OpTable table;
  std::vector<BlockOps> layers;
  LinearOps lm_head;
};

struct StepWork {
  const Model* model = nullptr;
  StepBatch batch;
  KvView kv;
  ExecContext exec;
  BlockBuffers block;
  void* logits = nullptr;
  const StepOps* other_ops = nullptr;

  Status run(Comm& comm);

 private:
  const OpTable& ops() const { return other_ops ? other_ops->table : model->ops(); }
  const BlockOps& layer_ops(int64_t layer) const {
    return other_ops ? other_ops->layers[static_cast<size_t>(layer)] : model->layer_ops(layer);
  }
  const LinearOps& lm_head_op() const { return other_ops ? other_ops->lm_head : model->lm_head_op(); }
  Status write_logits();
};

}  // namespace hearth
