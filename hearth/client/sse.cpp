// SPDX-License-Identifier: Apache-2.0
// One owner; see the header.
#include "hearth/client/sse.h"

namespace hearth {

Status SseParser::feed(std::string_view bytes, FunctionRef<Status(const SseEvent&)> on_event) {
  while (!bytes.empty()) {
    if (after_cr_) {
      after_cr_ = false;
      if (bytes.front() == '\n') bytes.remove_prefix(1);
      continue;
    }
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view piece = bytes.substr(0, end);
    if (std::ssize(line_) + std::ssize(data_) + std::ssize(piece) > max_event_bytes_)
      return resource_exhausted("an event of the stream is larger than {} bytes", max_event_bytes_);
    if (end == std::string_view::npos) {
      line_ += piece;
      return {};
    }
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (line_.empty()) {
      HEARTH_TRY(take_line(piece, on_event));
      continue;
    }
    line_ += piece;
    const Status taken = take_line(line_, on_event);
    line_.clear();
    HEARTH_TRY(taken);
  }
  return {};
}

Status SseParser::take_line(std::string_view line, FunctionRef<Status(const SseEvent&)> on_event) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (first_line_ && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  first_line_ = false;
  if (line.empty()) {
    Status told;
    if (has_data_) told = on_event({.name = name_, .data = data_});
    name_.clear();
    data_.clear();
    has_data_ = false;
    return told;
  }
  const size_t colon = line.find(':');
  const std::string_view field = line.substr(0, colon);
  std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (field == "data") {
    if (has_data_) data_ += '\n';
    data_ += value;
    has_data_ = true;
  } else if (field == "event") {
    name_ = value;
  }
  return {};
}

}  // namespace hearth
