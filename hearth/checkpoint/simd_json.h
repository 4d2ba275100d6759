// SPDX-License-Identifier: Apache-2.0
// JSON that may be large (safetensors headers, shard indexes), by simdjson. Its objects keep every key, so
// that duplicates can be seen. Internal to checkpoint; stateless.
#pragma once

#include <simdjson.h>

#include <string>

#include "hearth/base/result.h"

namespace hearth {

// Parses `text`; the result points into `parser`. Corrupt, with line and column, where it is not JSON.
Result<simdjson::dom::element> parse_large_json(simdjson::dom::parser& parser, const simdjson::padded_string& text);

// The value for messages: "-1", "1.5", "null", "a string", "an array", "an object".
std::string describe(simdjson::dom::element value);

}  // namespace hearth
