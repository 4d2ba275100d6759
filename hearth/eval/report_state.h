// SPDX-License-Identifier: Apache-2.0
// The memory of a report: sums per window and scores per item, each under the key of what they were computed from,
// in a jsonl file that only grows. A killed run finds there what it had done and goes on; what has another key
// (another model, text, KV format, ...) is never looked at.
//   I1. What was added is on disk (in the file system's hands) before the next window begins.
//   I2. Numbers come back bit for bit: they are written as the shortest text that reads back the same.
//   I3. A last line that a kill has torn is left out; another line that cannot be read is Corrupt.
// One owner; runs at the same time may share a file, each line is one write.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/eval/estimate.h"
#include "hearth/eval/lambada.h"

namespace hearth {

class ReportState {
 public:
  // Reads the file, or makes it. An empty path: nothing is kept beyond this object. Corrupt where the file is
  // something else, Unavailable where it cannot be read or written.
  static Result<ReportState> open(const std::filesystem::path& path);

  // Null where there is none.
  const WindowSums* window(const std::string& key, int64_t window) const;
  const LambadaScore* item(const std::string& key, int64_t item) const;

  // `note` says in the file, for people, what the key stands for.
  Status add_window(const std::string& key, std::string_view note, int64_t window, const WindowSums& sums);
  // REQUIRES: as many scores as items.
  Status add_items(const std::string& key, std::string_view note, std::span<const int64_t> items,
                   std::span<const LambadaScore> scores);

 private:
  Status read_line(std::string_view line);

  std::filesystem::path path_;
  std::map<std::string, std::map<int64_t, WindowSums>> windows_;
  std::map<std::string, std::map<int64_t, LambadaScore>> items_;
};

}  // namespace hearth
