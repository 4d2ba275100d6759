// SPDX-License-Identifier: Apache-2.0
// Test support: runs a program as a user does and keeps what it says. One thread.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace hearth::e2e {

struct ProcessOptions {
  std::string stdin_text;
  std::string stdout_path;                         // a file that stdout goes to; empty: kept in `out`
  std::map<std::string, std::string> environment;  // set beside the test's own
  bool show_stderr = false;                        // stderr is the test's own: progress of long runs
  long interrupt_after_bytes = -1;                 // Ctrl-C (SIGINT) once so many bytes of stdout have come
  int timeout_s = 240;                             // then the program is killed: a failure
};

struct ProcessResult {
  int exit_code = -1;  // -1 where a signal ended it
  int signal = 0;
  bool timed_out = false;
  std::string out, err;
};

// args[0] is the program's path.
ProcessResult run_process(const std::vector<std::string>& args, const ProcessOptions& options = {});

// The hearth binary of this build, with these arguments.
ProcessResult run_hearth(std::vector<std::string> args, const ProcessOptions& options = {});

}  // namespace hearth::e2e
