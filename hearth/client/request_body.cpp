// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/request_body.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace hearth {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostSloMs = 3'600'000;

void add_target(Json& fields, const char* name, int64_t target_us) {
  if (target_us > 0) fields[name] = std::clamp<int64_t>((target_us + 500) / 1000, 1, kMostSloMs);
}

}  // namespace

Result<Json> parse_extra_body(const std::string& text) {
  if (text.empty()) return Json::object();
  Json extra = Json::parse(text, nullptr, false);
  if (!extra.is_object()) return invalid_argument("--extra-body: not a JSON object: {}", text);
  return extra;
}

std::string open_body(const BodyTerms& terms, int64_t max_tokens, const Json& extra) {
  Json fields = {{"model", terms.model},
                 {"max_tokens", max_tokens},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
  if (terms.ignore_eos) fields["ignore_eos"] = true;
  if (terms.temperature) fields["temperature"] = *terms.temperature;
  add_target(fields, "ttft_slo_ms", terms.slo.ttft_us);
  add_target(fields, "tpot_slo_ms", terms.slo.tpot_us);
  fields.update(extra);
  std::string text = fields.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.pop_back();
  return text;
}

std::string ids_text(const std::vector<int32_t>& ids) {
  fmt::memory_buffer out;
  fmt::format_to(std::back_inserter(out), "[{}]", fmt::join(ids, ","));
  return fmt::to_string(out);
}

}  // namespace hearth
