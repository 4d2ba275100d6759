// SPDX-License-Identifier: Apache-2.0
// VirtualDevice: a machine that computes nothing and on which a step takes what a StepCost says. To the engine it is a
// backend like others, an op table: models are loaded and buffers planned for it, its KV pool has addresses and no
// memory behind them, and its attention, in a step's last layer, sleeps by a VirtualClock for as long as the step takes.
//   I1. One at a time: an op table has functions and no state.
//   I2. Nothing reads or writes the KV pool.
#pragma once

#include <map>
#include <memory>

#include "hearth/base/random.h"
#include "hearth/engine/served_model.h"
#include "hearth/simulate/load.h"
#include "tests/virtual_time/virtual_clock.h"

namespace hearth::virtual_time {

class VirtualDevice {
 public:
  // Steps take a normally distributed part more or less, `noise` its standard deviation.
  VirtualDevice(const VirtualClock& clock, double noise, uint64_t seed);
  ~VirtualDevice();
  VirtualDevice(const VirtualDevice&) = delete;
  VirtualDevice& operator=(const VirtualDevice&) = delete;

  // A model whose blocks have the size that `model` says, and whose steps take what it says. InvalidArgument: no KV
  // format has that size.
  Result<std::shared_ptr<const ServedModel>> load(const LoadModel& model, int64_t block_tokens, int64_t max_context);

  // What a step of this batch is to a StepCost.
  static StepLoad load_of(const StepBatch& batch);

 private:
  struct Ops;

  const VirtualClock& clock_;
  const double noise_;
  Random random_;
  std::map<const void*, StepCost> costs_;  // by where a model's embedding lies
  const StepCost* cost_ = nullptr;         // the step thread's: of the step under way
};

}  // namespace hearth::virtual_time
