// SPDX-License-Identifier: Apache-2.0
// The one binary. Everything is in app.cpp, where tests reach it.
#include "hearth/cli/app.h"

int main(int argc, char** argv) { return hearth::run_command_line({argv, static_cast<size_t>(argc)}); }
