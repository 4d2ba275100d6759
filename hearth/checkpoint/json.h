// SPDX-License-Identifier: Apache-2.0
// JSON of model folders: small files, read whole. The library's exceptions become Errors here. Stateless.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

inline constexpr int kMaxJsonDepth = 100;
// An index of a few hundred thousand tensors stays well below.
inline constexpr int64_t kMaxJsonFileBytes = int64_t{256} << 20;

// Parses one JSON value; a byte order mark before it is skipped. Corrupt, with line and column, where the
// text is not JSON or nests deeper than kMaxJsonDepth.
Result<nlohmann::json> parse_json(std::string_view text);

// What is wrong with `text` as JSON whose whole numbers have at most 64 bits ("line 1, column 9: ..."), nothing
// where it is that. Builds no values.
std::optional<std::string> json_syntax_error(std::string_view text);

// parse_json of a file; errors name it. NotFound where there is none.
Result<nlohmann::json> read_json_file(const std::filesystem::path& path);
// The same, and Corrupt where the value is not an object.
Result<nlohmann::json> read_json_object(const std::filesystem::path& path);

}  // namespace hearth
