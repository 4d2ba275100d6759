// SPDX-License-Identifier: Apache-2.0
// A load file and what the command line changes of it: the same for the simulator and for a real run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "hearth/cli/options.h"
#include "hearth/simulate/load_file.h"

namespace hearth {

struct LoadChanges {
  std::optional<double> rate, rate_scale, seconds;
  std::optional<int64_t> seed;
};

// --rate-scale and --seconds.
void add_load_changes(CLI::App& app, LoadChanges& changes, const char* group);

// `rate_flag`: the command's name for LoadChanges::rate. read_load()'s errors; InvalidArgument: changes that do not fit
// the file.
Result<Load> read_changed_load(const std::string& file, const LoadChanges& changes, const char* rate_flag);

}  // namespace hearth
