// SPDX-License-Identifier: Apache-2.0
// The commands. Each adds its sub-command with options and help to the application and says how it is run:
// the function returns the exit code, or an error that the caller prints.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <span>
#include <vector>

#include "hearth/base/result.h"

namespace hearth {

using RunCommand = std::function<Result<int>()>;

struct Command {
  CLI::App* app = nullptr;
  RunCommand run;
};

struct CommandContext {
  std::span<const char* const> args;  // of the process, for results that state the command
};

Command add_generate_command(CLI::App& app);
Command add_chat_command(CLI::App& app);
std::vector<Command> add_eval_commands(CLI::App& app, const CommandContext& context);
std::vector<Command> add_bench_commands(CLI::App& app, const CommandContext& context);
// Below `bench`, by add_bench_commands().
Command add_bench_model_command(CLI::App& bench, const CommandContext& context);
Command add_bench_load_command(CLI::App& bench, const CommandContext& context);
Command add_bench_ops_command(CLI::App& bench, const CommandContext& context);
Command add_inspect_command(CLI::App& app);
Command add_models_command(CLI::App& app);
Command add_quantize_command(CLI::App& app, const CommandContext& context);
Command add_serve_command(CLI::App& app);
Command add_simulate_command(CLI::App& app);
Command add_version_command(CLI::App& app);

// "hearth 0.1.0 (0123456789ab)"
std::string version_line();

// The exit code of a run that Ctrl-C ended.
inline constexpr int kInterruptedExit = 130;

}  // namespace hearth
