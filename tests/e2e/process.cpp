// SPDX-License-Identifier: Apache-2.0
#include "tests/e2e/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

namespace hearth::e2e {
namespace {

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) abort();
    read_end = ends[0], write_end = ends[1];
  }
  ~Pipe() { close_end(read_end), close_end(write_end); }
  static void close_end(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
  }
};

// In the child: only calls that are allowed between fork and exec, and setenv, as the test has one thread.
[[noreturn]] void become(std::vector<std::string> args, const ProcessOptions& options, int in, int out, int err) {
  signal(SIGPIPE, SIG_DFL);
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  if (!options.show_stderr) dup2(err, STDERR_FILENO);
  for (const auto& [name, value] : options.environment) setenv(name.c_str(), value.c_str(), 1);
  std::vector<char*> words;
  for (std::string& arg : args) words.push_back(arg.data());
  words.push_back(nullptr);
  execv(words[0], words.data());
  _exit(127);
}

bool append_available(int fd, std::string& text) {
  char buffer[1 << 16];
  const ssize_t got = read(fd, buffer, sizeof buffer);
  if (got > 0) text.append(buffer, static_cast<size_t>(got));
  return got > 0;
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& args, const ProcessOptions& options) {
  signal(SIGPIPE, SIG_IGN);  // a program that ends before it read all of stdin
  Pipe in, out, err;
  int file = -1;
  if (!options.stdout_path.empty()) file = open(options.stdout_path.c_str(), O_WRONLY | O_CLOEXEC);
  const pid_t child = fork();
  if (child == 0) become(args, options, in.read_end, file >= 0 ? file : out.write_end, err.write_end);
  Pipe::close_end(in.read_end), Pipe::close_end(out.write_end), Pipe::close_end(err.write_end);
  if (file >= 0) close(file);
  ProcessResult result;
  size_t written = 0;
  bool interrupted = options.interrupt_after_bytes < 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(options.timeout_s);
  while (out.read_end >= 0 || err.read_end >= 0) {
    if (written == options.stdin_text.size()) Pipe::close_end(in.write_end);
    pollfd fds[] = {{out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}, {in.write_end, POLLOUT, 0}};
    poll(fds, 3, 200);
    if (fds[0].revents && !append_available(out.read_end, result.out)) Pipe::close_end(out.read_end);
    if (fds[1].revents && !append_available(err.read_end, result.err)) Pipe::close_end(err.read_end);
    if (fds[2].revents) {
      const ssize_t put = write(in.write_end, options.stdin_text.data() + written, options.stdin_text.size() - written);
      written = put < 0 ? options.stdin_text.size() : written + static_cast<size_t>(put);
    }
    if (!interrupted && static_cast<long>(result.out.size()) > options.interrupt_after_bytes) {
      kill(child, SIGINT);
      interrupted = true;
    }
    if (!result.timed_out && std::chrono::steady_clock::now() > deadline) {
      result.timed_out = true;
      kill(child, SIGKILL);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  EXPECT_FALSE(result.timed_out) << args[0] << " did not end within " << options.timeout_s << " s";
  return result;
}

ProcessResult run_hearth(std::vector<std::string> args, const ProcessOptions& options) {
  args.insert(args.begin(), HEARTH_BINARY);
  return run_process(args, options);
}

}  // namespace hearth::e2e
