// SPDX-License-Identifier: Apache-2.0
// UTF-8: validity, and decoding in pieces with U+FFFD for what is no UTF-8. Internal to hearth/text; pure, or one
// thread per decoder.
#pragma once

#include <string>
#include <string_view>

namespace hearth::text_detail {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

bool is_valid_utf8(std::string_view text);

// Replaces as Rust's from_utf8_lossy does: one U+FFFD for each maximal prefix of a character that breaks off
// (Unicode 15, section 3.9, "U+FFFD Substitution of Maximal Subparts"). The sum of all output does not depend on
// where the input was cut.
class LossyUtf8Decoder {
 public:
  // Appends to `out` the whole characters of `bytes`, keeping an unfinished one at the end for later.
  void append(std::string_view bytes, std::string& out);
  // Appends U+FFFD for an unfinished character.
  void finish(std::string& out);

 private:
  std::string unfinished_;  // at most 3 bytes
};

}  // namespace hearth::text_detail
