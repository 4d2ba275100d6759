// SPDX-License-Identifier: Apache-2.0
// Requests that came once: those of published traces, as CSV, and of real runs, as lines of JSON or CSV.
// docs/guides/simulating.md has the columns.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

struct TraceRequest {
  int64_t arrival_us = 0;
  std::string model;  // empty where the file has no such column
  int64_t input_tokens = 0, output_tokens = 0;
};

// By arrival; of equal ones in the file's order. Times with a date count from the file's first arrival.
// NotFound; Corrupt, with the line, for a column that is missing, a row of another width, and for what is no time or no
// number of tokens; InvalidArgument: no request.
Result<std::vector<TraceRequest>> read_trace(const std::filesystem::path& path);

// What a load takes of a trace.
struct TraceCut {
  std::string model;    // of a file that tells them apart
  double offset_s = 0;  // what came before is left out, and this is time 0
  double speed = 1;     // 2: twice as dense
  int64_t limit = 0;    // the first so many; 0: all
};

// InvalidArgument: nothing is left.
Result<std::vector<TraceRequest>> cut_trace(std::vector<TraceRequest> trace, const TraceCut& cut);

}  // namespace hearth
