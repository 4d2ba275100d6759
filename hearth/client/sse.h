// SPDX-License-Identifier: Apache-2.0
// Server-sent events as the HTML standard defines them ("Server-sent events", interpreting an event stream):
// bytes in, cut anywhere, events out. Lines end with LF, CR or CRLF; a comment or an unknown field is nothing;
// an event that the end of the stream cuts off is not dispatched.
//   I1. How the bytes are cut never changes the events.
//   I2. What is held is bounded by max_event_bytes.
// One owner.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "hearth/base/function_ref.h"
#include "hearth/base/result.h"

namespace hearth {

struct SseEvent {
  std::string_view name;  // the field `event`; empty for the usual message
  std::string_view data;  // its lines joined with LF
};

class SseParser {
 public:
  explicit SseParser(int64_t max_event_bytes = int64_t{16} << 20) : max_event_bytes_(max_event_bytes) {}

  // Calls on_event for each event that `bytes` complete; its first error ends the parse and is returned.
  // ResourceExhausted: an event is larger than max_event_bytes.
  Status feed(std::string_view bytes, FunctionRef<Status(const SseEvent&)> on_event);

 private:
  Status take_line(std::string_view line, FunctionRef<Status(const SseEvent&)> on_event);

  const int64_t max_event_bytes_;
  std::string line_;  // begun and not ended
  std::string name_, data_;
  bool has_data_ = false;
  bool after_cr_ = false;   // an LF that comes next belongs to the line that CR ended
  bool first_line_ = true;  // may begin with a byte order mark
};

}  // namespace hearth
