// SPDX-License-Identifier: Apache-2.0
// StopMatcher: finds the first of several strings in a text that arrives in pieces, and holds back what may still
// become one. Internal to hearth/text. One thread per object.
// I1. held() is exactly the longest end of the text so far that begins one of the strings.
// I2. The match is the one that ends first; of those that end together the longest; so it does not depend on how the
//     text was cut.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hearth::text_detail {

class StopMatcher {
 public:
  // No string is empty.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next piece and appends to `out` what is certain to come before any match. With a match, `out` ends
  // before it, or after it with `include`, and everything later is dropped. O(bytes x strings).
  void append(std::string_view text, bool include, std::string& out);
  // The text is over: appends what was held.
  void finish(std::string& out);

  std::optional<int64_t> hit() const { return hit_; }
  std::string_view held() const { return held_; }

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // border[k]: longest proper prefix of text[0..k] that is also its end (KMP)
    size_t matched = 0;          // longest prefix of `text` that ends where the input ends
  };
  static void advance(Stop& stop, char byte);

  std::vector<Stop> stops_;
  std::string held_;
  std::optional<int64_t> hit_;
};

}  // namespace hearth::text_detail
