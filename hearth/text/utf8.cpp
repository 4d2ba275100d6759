// SPDX-License-Identifier: Apache-2.0
// UTF-8 after table 3-7 of the Unicode standard (well-formed byte sequences). Pure functions.
#include "hearth/text/utf8.h"

#include <cstddef>
#include <cstdint>

namespace hearth::text_detail {
namespace {

enum class Form { kValid, kInvalid, kUnfinished };
struct Sequence {
  Form form;
  size_t length;  // bytes of the character, of the broken prefix, or of what is there
};

// The first character of `text`, which is not empty.
Sequence first_sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Form::kValid, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Form::kInvalid, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Form::kUnfinished, i};
    uint8_t low = 0x80, high = 0xbf;
    if (i == 1) {
      if (lead == 0xe0) low = 0xa0;   // no overlong forms
      if (lead == 0xed) high = 0x9f;  // no surrogates
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;  // nothing past U+10FFFF
    }
    if (byte(i) < low || byte(i) > high) return {Form::kInvalid, i};
  }
  return {Form::kValid, length};
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Sequence sequence = first_sequence(text);
    if (sequence.form != Form::kValid) return false;
    text.remove_prefix(sequence.length);
  }
  return true;
}

void LossyUtf8Decoder::append(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!unfinished_.empty()) {
    joined = unfinished_.append(bytes);
    unfinished_.clear();
    bytes = joined;
  }
  while (!bytes.empty()) {
    const Sequence sequence = first_sequence(bytes);
    if (sequence.form == Form::kUnfinished) {
      unfinished_ = bytes;
      return;
    }
    out += sequence.form == Form::kValid ? bytes.substr(0, sequence.length) : kReplacementCharacter;
    bytes.remove_prefix(sequence.length);
  }
}

void LossyUtf8Decoder::finish(std::string& out) {
  if (!unfinished_.empty()) out += kReplacementCharacter;
  unfinished_.clear();
}

}  // namespace hearth::text_detail
