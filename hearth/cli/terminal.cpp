// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/terminal.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "hearth/checkpoint/quote.h"

namespace hearth {
namespace {

std::atomic<bool> g_interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler writes it");

void set_sigint(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;  // no SA_RESTART: a read of stdin returns with EINTR
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

// SA_RESETHAND gives the second Ctrl-C back its usual meaning.
void on_sigint(int) { g_interrupted.store(true, std::memory_order_relaxed); }

}  // namespace

bool stdin_is_terminal() { return isatty(STDIN_FILENO) != 0; }
bool stdout_is_terminal() { return isatty(STDOUT_FILENO) != 0; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) != 0; }

Status write_stdout(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (!written || std::fflush(stdout) != 0)
    return unavailable("cannot write to standard output: {}", std::strerror(errno));
  return {};
}

void write_stderr(std::string_view line) {
  const std::string shown = escape_controls(line) + "\n";
  std::fwrite(shown.data(), 1, shown.size(), stderr);
}

InterruptGuard::InterruptGuard() { clear(); }
InterruptGuard::~InterruptGuard() {
  set_sigint(SIG_DFL, 0);
  g_interrupted.store(false, std::memory_order_relaxed);
}
const std::atomic<bool>& InterruptGuard::flag() const { return g_interrupted; }
void InterruptGuard::clear() {
  g_interrupted.store(false, std::memory_order_relaxed);
  set_sigint(on_sigint, static_cast<int>(SA_RESETHAND));
}

LineReader::Outcome LineReader::read(std::string& line) {
  while (true) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos || (ended_ && !buffer_.empty())) {
      line = buffer_.substr(0, newline);
      buffer_.erase(0, newline == std::string::npos ? newline : newline + 1);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return Outcome::kLine;
    }
    if (ended_) return Outcome::kEnd;
    char bytes[4096];
    const ssize_t got = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (got > 0) {
      buffer_.append(bytes, static_cast<size_t>(got));
    } else if (got < 0 && errno == EINTR) {
      if (!g_interrupted.load(std::memory_order_relaxed)) continue;
      buffer_.clear();
      return Outcome::kInterrupted;
    } else {
      ended_ = true;
    }
  }
}

}  // namespace hearth
