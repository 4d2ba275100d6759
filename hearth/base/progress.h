// SPDX-License-Identifier: Apache-2.0
// Progress of something that takes a while, on stderr: one line that redraws itself on a terminal, plain
// lines elsewhere (a log, a pipe): one when a tenth more is done, at most one a second and at least one
// every ten seconds, and a last one. Rate and time left come from the average since the start.
//   I1. A terminal's cursor is at the start of a fresh line after finish() or the destructor.
//   I2. Without a terminal no escape sequence and no carriage return is written.
// One owning thread. Failures of writing are ignored; nothing throws.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "hearth/base/clock.h"

namespace hearth {

// Where progress goes. The default is stderr and the steady clock.
struct ProgressOutput {
  std::function<void(std::string_view)> write;
  bool is_terminal = false;
  int width = 80;                // columns of the terminal
  const Clock* clock = nullptr;  // lives as long as the Progress

  static ProgressOutput standard_error();
};

class Progress {
 public:
  enum class Unit { kItems, kBytes };

  // total: how many items or bytes there will be; 0 or less: unknown, then neither percent nor time left.
  Progress(std::string_view label, int64_t total, Unit unit, ProgressOutput output = ProgressOutput::standard_error());
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(int64_t count) { update(done_ + count); }
  // `done` in all so far.
  void update(int64_t done);
  // Writes the last line: amount, time and rate. Once; what comes later is ignored.
  void finish();

 private:
  void draw(int64_t now_ns);
  void write_line(int64_t now_ns);
  std::string state(int64_t now_ns, std::string_view separator) const;
  double seconds(int64_t now_ns) const { return static_cast<double>(now_ns - start_ns_) * 1e-9; }

  const std::string label_;
  const int64_t total_;
  const Unit unit_;
  const ProgressOutput output_;
  const int64_t start_ns_;
  int64_t done_ = 0;
  int64_t shown_ns_;        // when a line was last written
  int64_t shown_done_ = 0;  // and what it said
  bool drawn_ = false;      // a line without its end is on the terminal
  bool finished_ = false;
};

}  // namespace hearth
