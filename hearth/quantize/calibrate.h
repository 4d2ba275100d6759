// SPDX-License-Identifier: Apache-2.0
// Calibration: windows of tokens out of a text, and the model's activations on them, layer by layer.
//   I1. The windows follow from the text, the tokenizer and the seed alone.
//   I2. ActivationStream holds the residual stream of all windows and what one block needs for one window.
// One owner; the work runs on the threads of the pool.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/comm/comm.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/block.h"
#include "hearth/quantize/layer.h"
#include "hearth/text/tokenizer.h"

namespace hearth {

struct CalibrationOptions {
  std::filesystem::path file;  // text, or JSON lines with the string "text"
  int64_t samples = 128;
  int64_t length = 0;  // tokens of a window; 0: the model's context, at most 2048
  uint64_t seed = 0;
};

struct CalibrationSet {
  int64_t length = 0;
  std::vector<std::vector<int32_t>> windows;  // each of `length` ids

  int64_t tokens() const { return length * static_cast<int64_t>(windows.size()); }
};

// The documents of a file: the "text" of each line of a .jsonl file, else what newline, NUL, newline separates.
// Corrupt names the line that is no such object; InvalidArgument: nothing but white space.
Result<std::vector<std::string>> read_calibration_texts(const std::filesystem::path& file);

// Windows that start at places spread over the texts, one at a random place of each of equal parts. A window begins
// with BOS where the tokenizer puts one before a text; where a text ends in it, EOS and the next text follow.
// Fewer windows than asked for where they would overlap. InvalidArgument where the texts fill no window.
Result<CalibrationSet> make_windows(const std::vector<std::string>& texts, const Tokenizer& tokenizer, int64_t samples,
                                    int64_t length, uint64_t seed);

// "input of q_proj, k_proj and v_proj", ...
std::string_view block_point_name(BlockPoint point);

// A block's output for a window, [length, hidden] f32.
using OutputObserver = FunctionRef<Status(int64_t window, ConstTensorView values)>;

class ActivationStream {
 public:
  // The residual stream starts as the embedding of the ids. InvalidArgument for an id outside the vocabulary,
  // ResourceExhausted where the activations do not fit.
  static Result<ActivationStream> create(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const CalibrationSet& set, ThreadPool& pool);

  int64_t tokens() const { return windows_ * length_; }
  // [length, head_dim] f32 of the positions of a window, as rope_table gives it.
  ConstTensorView cos_sin() const { return {block_.cos_sin, DType::kF32, {length_, config_.head_dim}}; }
  // Bytes held: the residual stream, and the buffers of a block.
  int64_t size_bytes() const { return hidden_.size_bytes() + buffers_.size_bytes(); }

  struct Run {
    const LayerTensors* layer = nullptr;
    int64_t index = 0;                        // of the layer
    const BlockObserver* observer = nullptr;  // called for each window in order
    std::optional<BlockPoint> until;          // nothing after it is computed, and the stream stays as it is
    const OutputObserver* output = nullptr;   // gets what would be the stream's, which stays as it is
  };
  // The stream through a block. InvalidArgument names layer, point and place of a value that is NaN or infinite.
  Status run(const Run& run);

  // RMSNorm of the stream with `weight` [hidden], window by window: the input of lm_head.
  Status final_norm(const std::vector<float>& weight, FunctionRef<Status(ConstTensorView values)> observer);

 private:
  ActivationStream(const ModelConfig& config, ThreadPool& pool) : config_(config), pool_(&pool) {}
  Status plan();
  Status embed(const Checkpoint& checkpoint, const CalibrationSet& set);
  float* window(int64_t index);
  Status check_finite(ConstTensorView values, int64_t layer, int64_t window, std::string_view what) const;

  ModelConfig config_;
  ThreadPool* pool_;
  int64_t windows_ = 0, length_ = 0;
  HostBuffer hidden_;   // [windows, length, hidden] f32
  HostBuffer buffers_;  // block_, the KV pool, workspace
  BlockBuffers block_;
  KvView kv_;
  std::span<std::byte> workspace_;
  std::vector<int32_t> ids_, positions_, query_start_, context_;
  std::vector<int64_t> blocks_;
  SingleRank comm_;
};

}  // namespace hearth
