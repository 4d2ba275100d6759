// SPDX-License-Identifier: Apache-2.0
// hearth version: what this build is and what it runs on.
#include "hearth/kernels/cpu/targets.h"

#include <hwy/targets.h>

#include <nlohmann/json.hpp>

#include "hearth/base/thread_pool.h"
#include "hearth/base/version.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/terminal.h"
#include "hearth/eval/results.h"
#include "hearth/kernels/op_table.h"

namespace hearth {
namespace {

// The best instruction set that both this CPU and our kernels have: Highway's bits go from best to worst.
std::string instruction_set() {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(targets & -targets);
}

Result<int> run_version(bool json) {
  const BuildInfo& build = build_info();
  const int threads = ThreadPool::hardware_threads();
  const std::string device = cpu_device(threads), isa = instruction_set();
  std::vector<std::string_view> backends = {cpu_ops().backend, ref_ops().backend};
  std::vector<std::string> gpus;
  std::string no_gpus;
  if (const OpTable* const cuda = cuda_ops()) {
    backends.push_back(cuda->backend);
    if (auto names = cuda->device_names()) {
      gpus = *std::move(names);
    } else {
      no_gpus = names.error().message;
    }
  }
  if (json) {
    const nlohmann::json out = {{"version", build.version}, {"commit", build.commit}, {"compiler", build.compiler},
                                {"build", build.build},     {"backends", backends},   {"device", device},
                                {"threads", threads},       {"instruction_set", isa}, {"gpus", gpus}};
    HEARTH_TRY(write_stdout(out.dump() + "\n"));
    return 0;
  }
  std::string text = fmt::format(
      "{}\ncompiler          {}, {}\nbackends          {}\ndevice            {}\n"
      "instruction set   {}\n",
      version_line(), build.compiler, build.build, fmt::join(backends, ", "), device, isa);
  for (size_t i = 0; i < gpus.size(); ++i) text += fmt::format("{:<18}{}\n", fmt::format("cuda:{}", i), gpus[i]);
  if (!no_gpus.empty()) text += fmt::format("cuda              {}\n", no_gpus);
  HEARTH_TRY(write_stdout(text));
  return 0;
}

}  // namespace

std::string version_line() { return fmt::format("hearth {} ({})", build_info().version, build_info().commit); }

Command add_version_command(CLI::App& app) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("version", "What this build is and what it runs on.");
  command->fallthrough();
  command->add_flag("--json", *json, "One JSON object.");
  return {command, [json] { return run_version(*json); }};
}

}  // namespace hearth
