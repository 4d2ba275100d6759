// SPDX-License-Identifier: Apache-2.0
// JSON of requests: parsed within limits, and read field by field with messages that say what was found and what was
// wanted. null is the same as absent, unknown fields are not looked at, the last of two equal keys counts.
// A whole number may be written as 16, 16.0 or 1.6e1, as OpenAI takes it; never as a string.
// Pure; any thread. Compiles without coroutines.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/serve/api_error.h"
#include "hearth/serve/limits.h"

namespace hearth {

// Keeps the order of members, which chat templates can see.
using Json = nlohmann::ordered_json;

// The object that `text` is, or a 400: no JSON (with the place), not UTF-8, deeper than limits.json_depth, more values
// than limits.json_values, no object.
ApiResult<Json> parse_json_object(std::string_view text, const ApiLimits& limits);

// What is left of limits.json_values for a body and the texts in it that are JSON themselves.
struct JsonBudget {
  int64_t values = 0;
};
// The same for one of several texts of a request, which lies `depth` arrays and objects deep in the body: takes its
// values off the budget, also where it is refused.
ApiResult<Json> parse_json_object(std::string_view text, const ApiLimits& limits, JsonBudget& budget,
                                  int64_t depth = 0);

// A short quotation of a value for messages: `"hot" is a string`, `an array of 3`, `null`.
std::string describe(const Json& value);

// The member, or nullptr where it is absent or null.
const Json* find_field(const Json& object, std::string_view name);

struct IntegerRange {
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
};
struct NumberRange {
  double min = -std::numeric_limits<double>::max();
  double max = std::numeric_limits<double>::max();
  bool min_open = false;  // more than min
};

// Each leaves `value` alone where the field is absent or null. `param` is how the message calls the field.
ApiStatus read_bool(const Json& object, std::string_view name, bool& value);
ApiStatus read_integer(const Json& object, std::string_view name, IntegerRange range, std::optional<int64_t>& value);
ApiStatus read_number(const Json& object, std::string_view name, NumberRange range, std::optional<double>& value);
ApiStatus read_string(const Json& object, std::string_view name, int64_t max_bytes, std::optional<std::string>& value);

// One value. `what` names it in messages and is the error's param: "stop[2]".
ApiResult<int64_t> to_integer(const Json& value, const std::string& what, IntegerRange range);
// Token ids: not negative; whether the model has them is checked later.
ApiResult<std::vector<int32_t>> to_token_ids(const Json& array, const std::string& what);
// JSON text again; what is not UTF-8 cannot be in it.
std::string to_text(const Json& value);

}  // namespace hearth
