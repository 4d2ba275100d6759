// SPDX-License-Identifier: Apache-2.0
#include "hearth/checkpoint/quote.h"

#include <fmt/format.h>

#include <iterator>

namespace hearth {
namespace {

// Bytes of the control character that text begins with; 0: none. C1 is C2 80 to C2 9F.
size_t control_bytes(std::string_view text) {
  const auto c = static_cast<unsigned char>(text[0]);
  if (c < 0x20 || c == 0x7F) return 1;
  const bool c1 = c == 0xC2 && text.size() > 1 && static_cast<unsigned char>(text[1]) < 0xA0;
  return c1 && static_cast<unsigned char>(text[1]) >= 0x80 ? 2 : 0;
}

void append_escaped(std::string& out, std::string_view bytes) {
  for (const char c : bytes) fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(c));
}

}  // namespace

std::string escape_controls(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t control = text[i] == '\n' || text[i] == '\t' ? 0 : control_bytes(text.substr(i));
    if (control == 0) {
      out += text[i];
    } else {
      append_escaped(out, text.substr(i, control));
      i += control - 1;
    }
  }
  return out;
}

std::string quote_name(std::string_view name) {
  constexpr size_t kLimit = 120;
  std::string text = "'";
  size_t shown = 0;
  for (; shown < name.size(); ++shown) {
    const auto c = static_cast<unsigned char>(name[shown]);
    // Never between the bytes of one UTF-8 character.
    if (shown >= kLimit && (c & 0xC0) != 0x80) break;
    if (const size_t control = control_bytes(name.substr(shown)); control > 0) {
      append_escaped(text, name.substr(shown, control));
      shown += control - 1;
    } else {
      text += name[shown];
    }
  }
  text += "'";
  if (shown < name.size()) fmt::format_to(std::back_inserter(text), "... ({} bytes)", name.size());
  return text;
}

}  // namespace hearth
