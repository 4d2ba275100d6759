// SPDX-License-Identifier: Apache-2.0
// What commands need of the terminal: output that notices a full disk, Ctrl-C as a flag, lines that Ctrl-C
// can interrupt. The main thread only; the flag may be read by any.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

// Whether a person sees what goes there.
bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();

// Writes to stdout and flushes. Unavailable where that fails.
Status write_stdout(std::string_view text);
// Writes a line to stderr, its control characters escaped: it may hold what a file said. What fails there has
// nowhere to be told.
void write_stderr(std::string_view line);

// While one lives, Ctrl-C sets a flag instead of ending the process; a second Ctrl-C before clear() ends
// it as usual. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  const std::atomic<bool>& flag() const;
  bool interrupted() const { return flag().load(std::memory_order_relaxed); }
  void clear();
};

// Reads stdin line by line, for a dialogue.
class LineReader {
 public:
  enum class Outcome { kLine, kEnd, kInterrupted };
  // kLine: `line` without its newline. kInterrupted: Ctrl-C under an InterruptGuard; what was typed is lost.
  Outcome read(std::string& line);

 private:
  std::string buffer_;
  bool ended_ = false;
};

}  // namespace hearth
