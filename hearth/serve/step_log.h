// SPDX-License-Identifier: Apache-2.0
// StepLog: every step of the engine as a line of JSON in a file, for `hearth simulate --fit`: what was in it and how long
// it took. Passes on what it is told.
//   I1. A file that cannot be written any more is given up, with one warning; the engine goes on.
// Called by one engine thread at a time.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>

#include "hearth/base/result.h"
#include "hearth/engine/observer.h"

namespace hearth {

class StepLog final : public EngineObserver {
 public:
  // Replaces the file. InvalidArgument: it cannot be written. `next` outlives the log.
  static Result<std::unique_ptr<StepLog>> open(const std::filesystem::path& path, EngineObserver& next);

  void on_step(const StepRecord& record) noexcept override;
  void on_choice(const ChoiceRecord& record) noexcept override { next_.on_choice(record); }

 private:
  StepLog(std::filesystem::path path, EngineObserver& next) : path_(std::move(path)), next_(next), file_(path_) {}
  void write(const StepRecord& record);

  const std::filesystem::path path_;
  EngineObserver& next_;
  std::ofstream file_;
};

}  // namespace hearth
