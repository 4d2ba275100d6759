// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/app.h"

#include <cstdlib>
#include <new>

#include "hearth/base/log.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/help.h"
#include "hearth/cli/terminal.h"

namespace hearth {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  hearth generate models/fable-13m --prompt \"It was a bright morning\"\n"
    "  hearth chat meta-llama/Llama-3.2-1B-Instruct\n"
    "  hearth serve models/fable-13m --port 8000\n"
    "  hearth bench model models/fable-13m --batch 1,8\n"
    "  hearth bench serve --base-url http://127.0.0.1:8000 --request-rate 4 --random-input-len 128\n"
    "  hearth eval ppl models/fable-13m --text book.txt\n"
    "  hearth quantize models/fable-13m --to fp8 -o fable-fp8\n"
    "  hearth inspect models/fable-13m --tensors\n"
    "\n"
    "`hearth COMMAND --help` explains a command. Exit codes: 0 done, 2 wrong input, 3 not found, 4 corrupt file,\n"
    "5 not supported, 6 out of memory or another limit, 7 deadline, 8 unavailable, 9 device lost, 10 our own bug,\n"
    "130 ended by Ctrl-C.\n";

int print_error(const Error& error) {
  write_stderr("hearth: error: " + error.message);
  return exit_code(error.code);
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

// The innermost command that the words name.
const CLI::App* chosen_command(const CLI::App* app) {
  while (true) {
    const auto chosen = app->get_subcommands();
    if (chosen.empty()) return app;
    app = chosen.front();
  }
}

// The help of a command under its whole name, "hearth eval ppl".
std::string full_help(const CLI::App* command) {
  std::string above;
  for (const CLI::App* parent = command->get_parent(); parent != nullptr; parent = parent->get_parent())
    above = parent->get_name() + (above.empty() ? "" : " " + above);
  return command->help(above);
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string near = nearest(word, candidates);
  return near.empty() ? "" : fmt::format("; did you mean {}?", near);
}

// A word that nothing takes: an option, a command, or one positional too many.
Error unexpected_word(const CLI::App& app, const std::string& word) {
  const CLI::App* command = chosen_command(&app);
  const std::string name = command == &app ? "hearth" : command->get_display_name();
  if (word.size() > 1 && word[0] == '-') {
    std::vector<std::string> options;
    for (const CLI::Option* option : command->get_options())
      for (const std::string& long_name : option->get_lnames()) options.push_back("--" + long_name);
    return invalid_argument("unknown option {}{}", word, did_you_mean(word.substr(0, word.find('=')), options));
  }
  const std::vector<std::string> commands = command_names(*command);
  if (commands.empty()) return invalid_argument("{} takes no argument '{}'", name, word);
  return invalid_argument("unknown command '{}'{} (commands: {})", word, did_you_mean(word, commands),
                          fmt::join(commands, ", "));
}

// CLI11's words for what it found.
Error parse_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> remaining = app.remaining(true);
  if (!remaining.empty()) return unexpected_word(app, remaining.front());
  const CLI::App* command = chosen_command(&app);
  if (!command_names(*command).empty() && error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError))
    return invalid_argument("no command given; one of {}", fmt::join(command_names(*command), ", "));
  return invalid_argument("{}", error.what());
}

Result<int> run(std::span<const char* const> args) {
  CLI::App app("hearth runs large language models on this machine.", "hearth");
  app.formatter(help_formatter());
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", version_line, "Prints the version.");
  const char* const environment_level = std::getenv("HEARTH_LOG_LEVEL");
  std::string log_level = environment_level != nullptr && *environment_level ? environment_level : "warn";
  app.add_option(
         "--log-level", log_level,
         "What the log on standard error tells: trace, debug, info, warn, error or off (default: the environment "
         "variable HEARTH_LOG_LEVEL, else warn).")
      ->type_name("LEVEL");

  std::vector<Command> commands = {add_generate_command(app), add_chat_command(app)};
  for (Command& command : add_eval_commands(app, {args})) commands.push_back(std::move(command));
  commands.push_back(add_serve_command(app));
  commands.push_back(add_models_command(app));
  for (Command& command : add_bench_commands(app, {args})) commands.push_back(std::move(command));
  commands.push_back(add_quantize_command(app, {args}));
  commands.push_back(add_inspect_command(app));
  commands.push_back(add_simulate_command(app));
  commands.push_back(add_version_command(app));
  app.footer(kExamples);  // after the commands, which would inherit it

  try {
    app.parse(static_cast<int>(args.size()), args.data());
  } catch (const CLI::CallForHelp&) {
    HEARTH_TRY(write_stdout(full_help(chosen_command(&app))));
    return 0;
  } catch (const CLI::CallForVersion&) {
    HEARTH_TRY(write_stdout(version_line() + "\n"));
    return 0;
  } catch (const CLI::ParseError& error) {
    return parse_error(app, error);
  }
  HEARTH_TRY(init_log(log_level));
  for (const Command& command : commands)
    if (command.app->parsed() && command.app->get_subcommands().empty()) return command.run();
  const CLI::App* chosen = chosen_command(&app);
  HEARTH_TRY(write_stdout(full_help(chosen)));
  return 0;
}

}  // namespace

int run_command_line(std::span<const char* const> args) {
  // The only place that catches: a library may throw, and memory may end anywhere.
  try {
    const Result<int> result = run(args);
    return result ? *result : print_error(result.error());
  } catch (const std::bad_alloc&) {
    return print_error(resource_exhausted("out of memory"));
  } catch (const std::exception& error) {
    return print_error(internal_error("{}", error.what()));
  }
}

}  // namespace hearth
