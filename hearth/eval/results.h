// SPDX-License-Identifier: Apache-2.0
// Numbers that the project states are lines of jsonl files, written by the run that found them: what was
// measured, when, by which commit and command, on which device. docs/formats/results.md lists the fields.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

// "AMD EPYC 9R14, 8 threads", by /proc/cpuinfo; "CPU" where that says nothing.
std::string cpu_device(int threads);

// The command as a shell would take it: words with other than plain characters in single quotes.
std::string command_line(std::span<const char* const> args);

// "2026-01-31T12:00:00Z"
std::string iso_date(int64_t seconds_since_1970);

// What all lines have: bench, date, commit, command, device. Further fields are the caller's.
nlohmann::json result_line(std::string_view bench, std::string_view device, std::string_view command);

// Appends one line in one write, so that runs that share a file do not mix lines. Unavailable where the
// file cannot be written.
Status append_result(const std::filesystem::path& file, const nlohmann::json& line);

}  // namespace hearth
