// SPDX-License-Identifier: Apache-2.0
// A load as a file of TOML; docs/guides/simulating.md has its keys.
#pragma once

#include <filesystem>

#include "hearth/simulate/load.h"

namespace hearth {

// Tables of lengths and traces are named relative to the file. NotFound; Corrupt for what is not TOML; InvalidArgument,
// with the line, for unknown keys, missing ones and values that make no sense.
Result<Load> read_load(const std::filesystem::path& path);

// "probability,input_tokens,output_tokens" and a row for each quantile; lines with '#' are comments.
Result<LengthTable> read_lengths(const std::filesystem::path& path);

}  // namespace hearth
