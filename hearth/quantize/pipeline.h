// SPDX-License-Identifier: Apache-2.0
// The quantizer from end to end: a folder with a checkpoint in, a folder with the quantized one out.
//   I1. The same input, options, ops and seed give the same bytes of weights and configuration, for any number of
//       threads and wherever a run was cut off and went on.
//   I2. Memory: one layer in f32, the second moments of its inputs (8 k^2 bytes each) or of one of them with what
//       encoding needs, and ActivationStream's, in the memory of the ops.
// One owner; the work runs on the threads of the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/quantize/options.h"

namespace hearth {

struct QuantizeControl {
  // Weights that were encoded, and all that this run will encode.
  std::function<void(int64_t done, int64_t total)> progress;
  // What the user should know: windows taken, modules kept as they are, where an earlier run is gone on with.
  std::function<void(std::string_view)> note;
  // Looked at between matrices; true ends the run as Cancelled, to be gone on with later.
  const std::atomic<bool>* stop = nullptr;
};

struct QuantizeSummary {
  // Of the blocks' linears.
  int64_t modules = 0;         // that were quantized
  int64_t kept = 0;            // that stay plain
  int64_t weights = 0;         // of all
  double bits_per_weight = 0;  // of all
  double rel_error = 0;        // |W - Q|^2 / |W|^2, the mean over the quantized ones
  double lm_head_bits = 0;     // stored bits of a weight of a quantized lm_head; 0: it stays plain
  int64_t calibration_tokens = 0;
  int64_t activation_bytes = 0;  // the residual stream and the buffers of a block
  int64_t output_bytes = 0;
  int64_t resumed_shards = 0;  // that an earlier run had written
};

// Errors: Unsupported where the input is quantized already or holds tensors that hearth does not know; Corrupt for
// weights, InvalidArgument for activations that are NaN or infinite; InvalidArgument for options, for a method that
// needs a calibration and has none, for a folder that is not empty; ResourceExhausted where memory or disk end. What
// was written stays, and the same call goes on with it.
Result<QuantizeSummary> quantize_model(const std::filesystem::path& source, const std::filesystem::path& out,
                                       const QuantizeOptions& options, ThreadPool& pool,
                                       const QuantizeControl& control);

}  // namespace hearth
