// SPDX-License-Identifier: Apache-2.0
// A line a step.
#include "hearth/serve/step_log.h"

#include <nlohmann/json.hpp>

#include "hearth/base/log.h"

namespace hearth {

Result<std::unique_ptr<StepLog>> StepLog::open(const std::filesystem::path& path, EngineObserver& next) {
  std::unique_ptr<StepLog> log(new StepLog(path, next));
  if (!log->file_) return invalid_argument("{}: the log of steps cannot be written", path.string());
  return log;
}

void StepLog::on_step(const StepRecord& record) noexcept {
  next_.on_step(record);
  if (!file_.is_open()) return;
  try {
    write(record);
  } catch (...) {
    file_.setstate(std::ios::failbit);
  }
  if (file_) return;
  file_.close();
  spdlog::warn("{}: the log of steps cannot be written any more", path_.string());
}

void StepLog::write(const StepRecord& record) {
  const StepFeatures& f = record.features;
  file_ << nlohmann::json{{"model", record.model},
                          {"step", record.step},
                          {"tokens", f.tokens},
                          {"prefill_tokens", f.prefill_tokens},
                          {"sequences", f.sequences},
                          {"context_tokens", f.context_tokens},
                          {"prefill_pairs", f.prefill_pairs},
                          {"predicted_us", record.predicted_us},
                          {"measured_us", record.measured_us}}
               .dump()
        << '\n';
}

}  // namespace hearth
