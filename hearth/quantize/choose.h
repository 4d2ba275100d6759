// SPDX-License-Identifier: Apache-2.0
// A format for each linear under a budget of bits, by what each does to the output of its block.
//   I1. The choice follows from checkpoint, options and windows alone.
// One owner; the work runs on the threads of `compute`.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/quantize/calibrate.h"
#include "hearth/quantize/compute.h"
#include "hearth/quantize/options.h"

namespace hearth {

// What a linear costs and loses in one format.
struct FormatCost {
  std::string format;
  int64_t bytes = 0;
  double error = 0;  // |block's output - plain|^2 / |plain|^2, the linear alone being quantized
};

struct LinearCosts {
  std::string module;
  int64_t weights = 0;
  std::vector<FormatCost> costs;
};

// One format each so that all fit into bits_per_weight: each linear starts at its fewest bytes; then, again and again, the
// step to another format that takes most error away per byte, as long as it fits. InvalidArgument where the fewest
// bytes are too many.
Result<std::vector<FormatRule>> fit_formats(const std::vector<LinearCosts>& linears, double bits_per_weight);

// The rules out of the object that an earlier run settled: module to format. Corrupt unless each linear of `layers`
// blocks has a format, and one that there is.
Result<std::vector<FormatRule>> settled_formats(const nlohmann::ordered_json& settled, int64_t layers);

struct MeasureArgs {
  const Checkpoint* checkpoint = nullptr;
  const ModelConfig* config = nullptr;
  const QuantizeOptions* options = nullptr;  // candidates; groups and other details of each format
  const CalibrationSet* set = nullptr;       // the first kMeasuredWindows of it
  ThreadPool* pool = nullptr;
  const OpTable* ops = nullptr;  // that the blocks run on
  Compute* compute = nullptr;
  std::function<Status(int64_t layer)> next;  // before each layer; its error ends the measurement
};
inline constexpr size_t kMeasuredWindows = 8;

// Each linear of the blocks in each candidate, rounded to nearest: the order of formats and linears is what counts.
Result<std::vector<LinearCosts>> measure_formats(const MeasureArgs& args);

}  // namespace hearth
