// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/quote.h"

#include <fmt/format.h>

#include <iterator>

namespace hearth {

std::string quote_name(std::string_view name) {
  constexpr size_t kLimit = 120;
  std::string text = "'";
  size_t shown = 0;
  for (; shown < name.size(); ++shown) {
    const auto c = static_cast<unsigned char>(name[shown]);
    // Never between the bytes of one UTF-8 character.
    if (shown >= kLimit && (c & 0xC0) != 0x80) break;
    if (c < 0x20 || c == 0x7F) {
      fmt::format_to(std::back_inserter(text), "\\x{:02x}", c);
    } else {
      text += name[shown];
    }
  }
  text += "'";
  if (shown < name.size()) fmt::format_to(std::back_inserter(text), "... ({} bytes)", name.size());
  return text;
}

}  // namespace hearth
