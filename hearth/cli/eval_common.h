// SPDX-License-Identifier: Apache-2.0
// What the commands of hearth eval share. The main thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "hearth/base/progress.h"
#include "hearth/base/result.h"
#include "hearth/cli/options.h"
#include "hearth/eval/control.h"
#include "hearth/model/model.h"

namespace hearth {

// What papers feed where the model can take it.
inline constexpr int64_t kUsualWindow = 2048;
// Items of LAMBADA that share a step: enough to fill it.
inline constexpr int64_t kLambadaSlots = 16;

inline constexpr Setting<int64_t> kCtx{"--ctx", "N", 1, int64_t{1} << 31, "tokens", "Tokens of a window."};
inline constexpr Setting<int64_t> kLimit{"--limit", "N", 0,
                                         kNoLimit,  "",  "Only the first N windows or items; 0 for all."};

// A file that the outcome goes to is tried before the work, not after it.
Status check_output_file(const char* option, const std::string& path);

// Bits that a weight of the layers' linears takes, scales and tables included.
double bits_per_weight(const Model& model);
// The format of the layers' linears; several joined by " + " where they differ.
std::string stored_format(const Model& model);

// What computes, as lines of results name it: the GPU, or the CPU and its threads.
std::string device_of(const OpTable& ops, int threads);

// Progress on stderr while an evaluation runs.
class EvalProgress {
 public:
  EvalProgress(const std::atomic<bool>& stop, bool quiet, const std::string& what, int64_t total) : stop_(stop) {
    if (!quiet) progress_.emplace(what, total, Progress::Unit::kItems);
  }
  EvalControl control() {
    return {.progress =
                [this](int64_t done, int64_t) {
                  if (progress_) progress_->update(done);
                },
            .stop = &stop_};
  }
  void finish() {
    if (progress_) progress_->finish();
  }

 private:
  const std::atomic<bool>& stop_;
  std::optional<Progress> progress_;
};

}  // namespace hearth
