// SPDX-License-Identifier: Apache-2.0
// What a load test asks for, as the JSON that a server with OpenAI's API reads. Pure functions.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/schedule/slo.h"

namespace hearth {

// What the requests of a model have in common.
struct BodyTerms {
  std::string model;
  bool ignore_eos = true;
  std::optional<double> temperature;
  Slo slo;  // sent as ttft_slo_ms and tpot_slo_ms where set, in whole milliseconds of at most an hour, as hearth takes
};

// An object whose fields every request gets; of an empty text none. InvalidArgument: not a JSON object.
Result<nlohmann::json> parse_extra_body(const std::string& text);

// The object without its closing brace: the prompt follows. `extra` goes last and so may replace fields.
std::string open_body(const BodyTerms& terms, int64_t max_tokens, const nlohmann::json& extra);

// "[1,2,3]". As text: a list of a thousand numbers through a JSON tree would cost more than the request.
std::string ids_text(const std::vector<int32_t>& ids);

}  // namespace hearth
