// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/simd_json.h"

#include <optional>
#include <string_view>

#include "hearth/checkpoint/json.h"

namespace hearth {

Result<simdjson::dom::element> parse_large_json(simdjson::dom::parser& parser, const simdjson::padded_string& text) {
  simdjson::dom::element root;
  const simdjson::error_code error = parser.parse(text).get(root);
  if (error == simdjson::SUCCESS) return root;
  const std::string_view view(text);
  if (error == simdjson::MEMALLOC) return resource_exhausted("no memory for the {} bytes of JSON", view.size());
  // simdjson does not say where.
  if (const auto place = json_syntax_error(view)) return corrupt("not JSON: {}", *place);
  return corrupt("not JSON: {}", simdjson::error_message(error));
}

std::string describe(simdjson::dom::element value) {
  using simdjson::dom::element_type;
  switch (value.type()) {
    case element_type::ARRAY: return "an array";
    case element_type::OBJECT: return "an object";
    case element_type::STRING: return "a string";
    case element_type::INT64: return fmt::format("{}", int64_t(value));
    case element_type::UINT64: return fmt::format("{}", uint64_t(value));
    case element_type::DOUBLE: return fmt::format("{:#}", double(value));
    case element_type::BOOL: return bool(value) ? "true" : "false";
    case element_type::NULL_VALUE: return "null";
  }
  return "nothing known";
}

}  // namespace hearth
