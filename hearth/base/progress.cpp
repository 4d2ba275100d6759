// SPDX-License-Identifier: Apache-2.0
// Progress: lines are built whole and written at once, so that other output cannot come between.
#include "hearth/base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

namespace hearth {
namespace {

constexpr int64_t kMillisecond = 1'000'000, kSecond = 1000 * kMillisecond;
constexpr int64_t kRedrawNs = 100 * kMillisecond;
constexpr int64_t kPlainShortestNs = kSecond, kPlainLongestNs = 10 * kSecond;
constexpr int kBarColumns = 24;

// "1.2 GB", "31 items" without the word: three significant digits above a thousand.
std::string amount(double value, Progress::Unit unit) {
  constexpr std::array<const char*, 6> kPrefixes = {"", "k", "M", "G", "T", "P"};
  const char* suffix = unit == Progress::Unit::kBytes ? "B" : "";
  size_t prefix = 0;
  // Whole items are counted exactly up to a million.
  if (unit == Progress::Unit::kBytes || value >= 999999.5) {
    for (; value >= 999.5 && prefix + 1 < kPrefixes.size(); ++prefix) value /= 1000;
  }
  const int digits = prefix == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const char* space = prefix == 0 && *suffix == 0 ? "" : " ";
  return fmt::format("{:.{}f}{}{}{}", value, digits, space, kPrefixes[prefix], suffix);
}

std::string rate(double per_second, Progress::Unit unit) {
  if (unit == Progress::Unit::kItems && per_second < 99.95) return fmt::format("{:.3g}/s", per_second);
  return amount(per_second, unit) + "/s";
}

std::string duration(double seconds) {
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  const int64_t whole = static_cast<int64_t>(std::min(seconds, 1e15) + 0.5);
  if (whole < 100) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

// Labels hold names that users chose: no control characters may reach a terminal.
std::string printable(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return result;
}

// At most `columns` bytes, never half a UTF-8 character.
std::string clip(std::string text, int columns) {
  if (std::ssize(text) <= columns) return text;
  size_t end = static_cast<size_t>(std::max(columns, 0));
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text;
}

}  // namespace

ProgressOutput ProgressOutput::standard_error() {
  static const SteadyClock clock;
  const char* term = std::getenv("TERM");
  const bool is_terminal = isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
  winsize size{};
  const bool has_size = is_terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return {.write =
              [](std::string_view text) {
                std::fwrite(text.data(), 1, text.size(), stderr);
                std::fflush(stderr);
              },
          .is_terminal = is_terminal,
          .width = has_size ? size.ws_col : 80,
          .clock = &clock};
}

Progress::Progress(std::string_view label, int64_t total, Unit unit, ProgressOutput output)
    : label_(printable(label)),
      total_(total),
      unit_(unit),
      output_(std::move(output)),
      start_ns_(output_.clock->now_ns()),
      shown_ns_(start_ns_) {}

Progress::~Progress() {
  if (drawn_) output_.write("\n");
}

void Progress::update(int64_t done) {
  if (finished_) return;
  done_ = done;
  const int64_t now_ns = output_.clock->now_ns(), since_ns = now_ns - shown_ns_;
  if (output_.is_terminal) {
    if (since_ns >= kRedrawNs) draw(now_ns);
    return;
  }
  const bool tenth_more = total_ > 0 && done_ - shown_done_ >= (total_ + 9) / 10;
  const bool complete = total_ > 0 && done_ >= total_;  // finish() says so
  if (complete) return;
  if ((since_ns >= kPlainShortestNs && tenth_more) || since_ns >= kPlainLongestNs) write_line(now_ns);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  const double passed = seconds(output_.clock->now_ns());
  std::string line = fmt::format("{}: {} in {}", label_, amount(static_cast<double>(done_), unit_), duration(passed));
  if (passed > 0 && done_ > 0) line += fmt::format(" ({})", rate(static_cast<double>(done_) / passed, unit_));
  output_.write(output_.is_terminal && drawn_ ? "\r" + line + "\x1b[K\n" : line + "\n");
  drawn_ = false;
}

// "45 %, 1.2 GB / 2.6 GB, 1.9 GB/s, 1 s left"
std::string Progress::state(int64_t now_ns, std::string_view separator) const {
  const double done = static_cast<double>(done_), total = static_cast<double>(total_), passed = seconds(now_ns);
  std::string text;
  if (total_ > 0) {
    // 100 % only when all is done.
    const int64_t percent = std::clamp<int64_t>(static_cast<int64_t>(done / total * 100), 0, done_ < total_ ? 99 : 100);
    text = fmt::format("{:3} %{}{} / {}", percent, separator, amount(done, unit_), amount(total, unit_));
  } else {
    text = amount(done, unit_);
  }
  if (passed > 0 && done_ > 0) {
    text += fmt::format("{}{}", separator, rate(done / passed, unit_));
    if (total_ > done_) text += fmt::format("{}{} left", separator, duration((total - done) * passed / done));
  }
  return text;
}

void Progress::draw(int64_t now_ns) {
  const std::string text = state(now_ns, "  ");
  std::string line = label_;
  // One column stays free: a full line would wrap.
  const int64_t room = output_.width - 1 - std::ssize(label_) - std::ssize(text) - 6;
  if (total_ > 0 && room >= 8) {
    const int64_t columns = std::min<int64_t>(room, kBarColumns);
    const double fraction = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
    const int64_t full = static_cast<int64_t>(fraction * static_cast<double>(columns));
    line += fmt::format("  [{}{}]", std::string(static_cast<size_t>(full), '#'),
                        std::string(static_cast<size_t>(columns - full), '.'));
  }
  line = clip(line + "  " + text, output_.width - 1);
  output_.write("\r" + line + "\x1b[K");
  drawn_ = true;
  shown_ns_ = now_ns;
  shown_done_ = done_;
}

void Progress::write_line(int64_t now_ns) {
  std::string text = state(now_ns, ", ");
  text.erase(0, text.find_first_not_of(' '));
  output_.write(fmt::format("{}: {}\n", label_, text));
  shown_ns_ = now_ns;
  shown_done_ = done_;
}

}  // namespace hearth
