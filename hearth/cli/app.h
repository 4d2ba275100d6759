// SPDX-License-Identifier: Apache-2.0
// The command line: which commands there are, and how their results become an exit code. Results go to
// stdout; errors go to stderr as one line `hearth: error: <message>`. Called once, from main.
#pragma once

#include <span>

namespace hearth {

// Exit code: 0; exit_code() of the error; 130 after Ctrl-C.
int run_command_line(std::span<const char* const> args);

}  // namespace hearth
