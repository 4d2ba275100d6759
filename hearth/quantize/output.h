// SPDX-License-Identifier: Apache-2.0
// OutputFolder: the checkpoint that the quantizer writes, shard by shard, and the state that lets a run go on.
//   I1. Until finish() the folder has no config.json: nobody takes it for a checkpoint.
//   I2. Every file appears under its name whole. A shard counts when quantize_state.json says so.
//   I3. A folder with anything in it but an unfinished run of the same fingerprint, or one of another that has encoded
//       and settled nothing yet, is left as it is.
// One owner.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/checkpoint/quantized_writer.h"

namespace hearth {

inline constexpr const char* kQuantizeStateFile = "quantize_state.json";
inline constexpr const char* kQuantizeReportFile = "quantize_report.jsonl";

// Writes a file under its name whole or not at all, and brings it to the disk. ResourceExhausted: disk full.
Status write_text_file(const std::filesystem::path& path, std::string_view text);

class OutputFolder {
 public:
  // Makes the folder, or goes on in it, or begins anew in that of a run that ended before a linear was encoded.
  // `fingerprint` (an object) is all that the result follows from. InvalidArgument where the folder is not empty, or
  // its unfinished run has another fingerprint: the message names the first member that differs. Unavailable while
  // another run has the folder open.
  static Result<OutputFolder> open(const std::filesystem::path& dir, const nlohmann::ordered_json& fingerprint,
                                   int64_t shards);
  ~OutputFolder();
  OutputFolder(OutputFolder&&) noexcept;
  OutputFolder& operator=(OutputFolder&&) noexcept;

  // Shards that an earlier run wrote: the next one has this number.
  int64_t shards_done() const;
  // The report lines of those, as write_shard() got them.
  const nlohmann::ordered_json& lines() const;
  std::filesystem::path shard_path(int64_t index) const;
  // What was settled before the first shard and must not be settled anew; null until it is.
  const nlohmann::ordered_json& settled() const;
  Status settle(nlohmann::ordered_json value);

  // Writes shard `shards_done()` and notes it with the lines (an array) that belong to it. Tensors are the shard's.
  Status write_shard(std::span<const StoredTensor> tensors, const nlohmann::ordered_json& lines);

  // What makes the folder a checkpoint: index, `extra` files of `source`, report, and last config.json. The state is
  // removed. REQUIRES: all shards are written.
  Status finish(const std::filesystem::path& source, const nlohmann::ordered_json& config);

 private:
  struct State;
  explicit OutputFolder(std::unique_ptr<State> state);
  Status lock();
  Status begin_anew(std::span<const std::filesystem::path> files);
  Status save_state();
  std::unique_ptr<State> state_;
};

}  // namespace hearth
