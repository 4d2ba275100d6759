// SPDX-License-Identifier: Apache-2.0
// StopMatcher: one Knuth-Morris-Pratt automaton per string. One thread per object.
#include "hearth/text/stop_matcher.h"

#include <algorithm>

namespace hearth::text_detail {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    std::vector<size_t> border(text.size(), 0);
    for (size_t k = 1, length = 0; k < text.size(); ++k) {
      while (length > 0 && text[k] != text[length]) length = border[length - 1];
      if (text[k] == text[length]) ++length;
      border[k] = length;
    }
    stops_.push_back({std::move(text), std::move(border)});
  }
}

void StopMatcher::advance(Stop& stop, char byte) {
  while (stop.matched > 0 && byte != stop.text[stop.matched]) stop.matched = stop.border[stop.matched - 1];
  if (byte == stop.text[stop.matched]) ++stop.matched;
}

void StopMatcher::append(std::string_view text, bool include, std::string& out) {
  if (hit_) return;
  const size_t before = held_.size();
  held_ += text;
  for (size_t i = before; i < held_.size(); ++i) {
    const Stop* longest = nullptr;
    for (Stop& stop : stops_) {
      advance(stop, held_[i]);
      const bool complete = stop.matched == stop.text.size();
      if (complete && (!longest || stop.text.size() > longest->text.size())) longest = &stop;
    }
    if (longest) {
      hit_ = longest - stops_.data();
      out += std::string_view(held_).substr(0, i + 1 - (include ? 0 : longest->text.size()));
      held_.clear();
      return;
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  out += std::string_view(held_).substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
}

void StopMatcher::finish(std::string& out) {
  out += held_;
  held_.clear();
}

}  // namespace hearth::text_detail
