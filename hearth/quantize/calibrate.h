// SPDX-License-Identifier: Apache-2.0
// Calibration: windows of tokens out of a text, and the model's activations on them, layer by layer.
//   I1. The windows follow from the text, the tokenizer and the seed alone.
//   I2. ActivationStream holds the residual stream of all windows, what one block needs for one window, and at most
//       kMostKeptBytes of all windows' values within a block: all of it in the memory of the op table that it runs on.
// One owner; the work runs on the threads of the pool.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/checkpoint/checkpoint.h"
#include "hearth/comm/comm.h"
#include "hearth/kernels/op_table.h"
#include "hearth/memory/step_staging.h"
#include "hearth/model/block.h"
#include "hearth/quantize/layer.h"
#include "hearth/quantize/moments.h"
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

// Values of a window, [length, columns] f32 in host memory.
using WindowObserver = FunctionRef<Status(int64_t window, ConstTensorView values)>;
// Second moments of the inputs of linears.
using InputMoments = std::map<BlockPoint, SecondMoments>;

class ActivationStream {
 public:
  static constexpr int64_t kMostKeptBytes = int64_t{4} << 30;

  // The residual stream starts as the embedding of the ids. InvalidArgument for an id outside the vocabulary,
  // ResourceExhausted where the activations do not fit.
  static Result<ActivationStream> create(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const CalibrationSet& set, ThreadPool& pool, const OpTable& ops = cpu_ops());

  int64_t tokens() const { return windows_ * length_; }
  // [length, head_dim] f32 of the positions of a window, as rope_table gives it; in host memory.
  ConstTensorView cos_sin() const { return {cos_sin_.data(), DType::kF32, {length_, config_.head_dim}}; }
  // Bytes held: the residual stream, the buffers of a block,
  // and what is kept of a block that runs in parts.
  int64_t size_bytes() const { return hidden_.size_bytes() + buffers_.size_bytes() + kept_.size_bytes(); }

  struct Run {
    const LayerTensors* layer = nullptr;
    int64_t index = 0;                       // of the layer
    InputMoments* moments = nullptr;         // of the points that are in it; overwritten
    const WindowObserver* qkv = nullptr;     // called with BlockPoint::kQkv of each window in order
    std::optional<BlockPoint> until;         // nothing after it is computed, and the stream stays as it is,
    bool keep = false;                       // but for this: the next run of the block goes on from there
    int64_t windows = 0;                     // the first ones alone, with `until` and not `keep`; 0: all
    const WindowObserver* output = nullptr;  // gets what would be the stream's, which stays as it is
  };
  // The stream through a block, from where a run that kept its place ended: what lies before it is not gathered.
  // Such a place is O's or down's input where these take at most kMostKeptBytes and memory has them, and always the
  // input of gate and up, where the stream itself moves on; from elsewhere the block is computed again. The results are
  // the same. REQUIRES: weights before a kept place do not change. InvalidArgument names layer, point and place of a
  // value that is NaN or infinite; the stream is of no use then.
  Status run(const Run& run);

  // Moments of RMSNorm of the stream with `weight` [hidden]: the input of lm_head.
  Result<SecondMoments> final_norm(const std::vector<float>& weight);

 private:
  class Pass;

  ActivationStream(const ModelConfig& config, ThreadPool& pool, const OpTable& ops)
      : config_(config), pool_(&pool), ops_(&ops) {}
  Status plan();
  Status plan_step();
  Status embed(const Checkpoint& checkpoint, const CalibrationSet& set);
  // Window `index` of a buffer [windows, length, columns] f32.
  std::byte* window(const Buffer& buffer, int64_t index, int64_t columns) const {
    return buffer.data() + index * length_ * columns * static_cast<int64_t>(sizeof(float));
  }
  TensorView rows(void* at, int64_t columns) const { return {at, DType::kF32, {length_, columns}}; }
  int64_t columns_at(BlockPoint point) const;
  bool can_keep(BlockPoint point);
  Result<LayerWeights> place(const LayerTensors& layer);
  // Views of host memory, copied to where the ops read.
  Status place(std::span<ConstTensorView* const> views);

  ModelConfig config_;
  ThreadPool* pool_;
  const OpTable* ops_;
  int64_t windows_ = 0, length_ = 0;
  std::unique_ptr<Queue> queue_;
  Buffer hidden_;  // [windows, length, hidden] f32
  Buffer kept_;    // [windows, length, columns_at(place_)] f32, where place_ is O's or down's input
  BlockPoint place_ = BlockPoint::kQkvInput;  // in the block that is being run
  Buffer buffers_;                            // block_, bad_, the KV pool, workspace
  BlockBuffers block_;
  uint64_t* bad_ = nullptr;  // of each place that Pass looks at
  Buffer weights_;           // a layer's, where the ops do not read host memory
  KvView kv_;
  std::vector<float> cos_sin_;
  std::vector<int32_t> ids_, positions_, query_start_, context_;
  std::vector<int64_t> blocks_;
  StepStaging staging_;
  StepBatch batch_;
  ExecContext exec_;
  SingleRank comm_;
};

}  // namespace hearth
