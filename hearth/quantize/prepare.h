// SPDX-License-Identifier: Apache-2.0
// What a layer goes through before its linears are encoded: function-preserving steps (transform.h) whose factors are
// searched on the calibration's activations, so that the format of weights and KV cache loses less.
//   I1. What the layer computes does not change, but for one rounding of a weight per step.
// One owner; the work runs on the threads of `compute`.
#pragma once

#include <set>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/calibrate.h"
#include "hearth/quantize/compute.h"
#include "hearth/quantize/layer.h"
#include "hearth/quantize/options.h"

namespace hearth {

struct PrepareArgs {
  const ModelConfig* config = nullptr;
  const QuantizeOptions* options = nullptr;
  const std::vector<ModuleRecipe>* recipes = nullptr;  // of LayerTensors::linears()
  int64_t index = 0;                                   // of the layer
  DType stored = DType::kF32;                          // of the norms
  ActivationStream* stream = nullptr;                  // null: only what needs no activations
  Compute* compute = nullptr;
  std::set<BlockPoint> moments;  // inputs of linears of which the caller wants the second moments; needs `stream`
};

// What the layer stores for an FP8 cache: what a stored 1 stands for, [1] or [kv_heads]. Empty: none.
struct Fp8KvScales {
  std::vector<float> key;
  std::vector<float> value;
};

struct PreparedLayer {
  Fp8KvScales kv;
  InputMoments moments;  // those that were asked for, of the layer as it is now
};

// Whether the steps need activations: InvalidArgument without a calibration then.
bool prepare_needs_calibration(const QuantizeOptions& options);
// Whether inputs of linears are scaled: asked for, all of them then, or by default for 4-bit weights by GPTQ, those
// that have outliers (transform_scales.h).
bool scales_inputs(const QuantizeOptions& options);

// The steps leave what reaches a linear as it was, but for their own factors: one pass through the layer, before any of
// them, gathers all that the searches look at.
// In this order: factors of K and Q, of V and O for the KV format, rotation of V, scales of the inputs of O, down, QKV,
// gate and up.
Result<PreparedLayer> prepare_layer(LayerTensors& layer, const PrepareArgs& args);

}  // namespace hearth
