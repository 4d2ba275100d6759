// SPDX-License-Identifier: Apache-2.0
// hearth simulate: a load on a device under a virtual clock. The main thread.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/base/clock.h"
#include "hearth/cli/commands.h"
#include "hearth/cli/load_options.h"
#include "hearth/cli/options.h"
#include "hearth/cli/terminal.h"
#include "hearth/simulate/picture.h"
#include "hearth/simulate/simulator.h"
#include "hearth/simulate/step_file.h"

namespace hearth {
namespace {

constexpr Setting<double> kRate{
    "--rate", "R", 1e-6, 1e6, "requests/s", "Of all models whose requests are drawn; instead of the file's."};
constexpr Setting<double> kSwapMib{"--swap-mib", "N", 0, 1e9, "MiB", "Host memory for KV of preempted sequences."};
constexpr Setting<int64_t> kSeed{"--seed", "N", 0, kNoLimit, "", "Instead of the file's."};
constexpr const char* kPolicies[] = {"slo", "fcfs", "fineserve", "clairvoyant"};
constexpr const char* kMemories[] = {"slab", "static", "fineserve"};

constexpr const char* kHelp =
    "Plays the load of LOADFILE through the pools and policies that serve, on a machine whose steps take what the "
    "file\n"
    "says. docs/guides/simulating.md has the file's keys; bench/loads has loads.\n\n"
    "Examples:\n"
    "  hearth simulate bench/loads/five-formats.toml\n"
    "  hearth simulate bench/loads/four-models.toml --policy fcfs --memory static --plot static.svg\n"
    "  hearth simulate bench/loads/four-models.toml --fit steps.jsonl\n";

struct SimulateSettings {
  std::string file, plot, fit, json, requests;
  SimulatorOptions options;
  LoadChanges changes;
  std::optional<double> swap_mib;
};

std::string table(const Load& load, const SimulationOutcome& outcome) {
  std::string out =
      "| model | requests | attained | first on time | pace kept | refused | unfinished | recomputed | swapped | TTFT "
      "p50 s | p99 "
      "s | "
      "tokens/s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  for (size_t m = 0; m < load.models.size(); ++m) {
    const ModelOutcome& o = outcome.models[m];
    const double all = std::max<double>(1, static_cast<double>(o.requests));
    const auto part = [&](int64_t n) { return static_cast<double>(n) / all; };
    out += fmt::format("| {} | {} | {:.4f} | {:.4f} | {:.4f} | {} | {} | {} | {} | {:.3f} | {:.3f} | {:.1f} |\n",
                       load.models[m].name, o.requests, part(o.attained), part(o.first_on_time), part(o.pace_kept),
                       o.rejected, o.unfinished, o.recomputed, o.swapped, o.ttft_p50_s, o.ttft_p99_s,
                       static_cast<double>(o.generated_tokens) / load.seconds);
  }
  return out;
}

std::string json_of(const Load& load, const SimulationOutcome& outcome) {
  nlohmann::json json{{"attainment", outcome.attainment()},
                      {"tokens_per_s", outcome.tokens_per_second(load)},
                      {"busy", outcome.busy},
                      {"prediction_error", outcome.prediction_error},
                      {"models", nlohmann::json::array()}};
  for (size_t m = 0; m < load.models.size(); ++m) {
    const ModelOutcome& o = outcome.models[m];
    json["models"].push_back({{"model", load.models[m].name},
                              {"requests", o.requests},
                              {"attained", o.attained},
                              {"first_on_time", o.first_on_time},
                              {"pace_kept", o.pace_kept},
                              {"rejected", o.rejected},
                              {"unfinished", o.unfinished},
                              {"recomputed", o.recomputed},
                              {"swapped", o.swapped},
                              {"ttft_p50_s", o.ttft_p50_s},
                              {"ttft_p99_s", o.ttft_p99_s},
                              {"tokens_per_s", static_cast<double>(o.generated_tokens) / load.seconds}});
  }
  return json.dump(2) + "\n";
}

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  if (!file.flush()) return invalid_argument("{}: cannot be written", path);
  return {};
}

// The machine that ran those steps. InvalidArgument: a model of the load has none.
Status take_costs(const std::string& path, Load& load) {
  HEARTH_TRY_ASSIGN(const std::vector<ModelSteps> steps, read_steps(path));
  for (LoadModel& model : load.models) {
    const auto found = std::ranges::find(steps, model.name, &ModelSteps::model);
    if (found == steps.end()) return invalid_argument("{}: no step of model '{}'", path, model.name);
    model.cost = fit_step_cost(found->steps).cost;
    model.spread = StepSpread(model.cost, found->steps);
  }
  return {};
}

Result<int> run(SimulateSettings settings) {
  HEARTH_TRY_ASSIGN(Load load, read_changed_load(settings.file, settings.changes, kRate.flag));
  if (!settings.fit.empty()) HEARTH_TRY(take_costs(settings.fit, load));
  if (settings.swap_mib) load.swap_bytes = static_cast<int64_t>(*settings.swap_mib * (1 << 20));
  SimulatorOptions& options = settings.options;
  const std::string said = options.policy;
  options.clairvoyant = said == "clairvoyant";
  if (options.clairvoyant) options.policy = "slo";
  const SteadyClock clock;
  const int64_t begin_ns = clock.now_ns();
  const std::vector<LoadRequest> requests = draw_requests(load);
  if (!settings.requests.empty()) {
    HEARTH_TRY(write_file(settings.requests, trace_csv(load, requests)));
    return 0;
  }
  const double last_s = requests.empty() ? 0 : static_cast<double>(requests.back().arrival_us) * 1e-6;
  HEARTH_TRY_ASSIGN(const SimulationOutcome outcome, simulate(load, requests, options));
  const double wall_s = static_cast<double>(clock.now_ns() - begin_ns) * 1e-9;
  std::string out = fmt::format("{}: policy {}, memory {}, seed {}, {} requests, the last at {:.6g} s of {:.6g} s\n\n",
                                settings.file, said, options.memory, load.seed, requests.size(), last_s, load.seconds);
  out += table(load, outcome);
  out += fmt::format(
      "\nattained {:.4f}; {:.1f} tokens/s; device busy {:.3f}; memory {:.4f} on average, {:.4f} at worst; {:.2f} MiB "
      "moved a step; step time predicted to {:.1f} %\n",
      outcome.attainment(), outcome.tokens_per_second(load), outcome.busy, outcome.memory_mean, outcome.memory_worst,
      outcome.moved_bytes_per_step / (1 << 20), 100 * outcome.prediction_error);
  out += fmt::format("simulated {} requests in {} steps in {:.2f} s: {:.0f} requests/s\n", outcome.requests,
                     outcome.steps, wall_s, static_cast<double>(outcome.requests) / wall_s);
  HEARTH_TRY(write_stdout(out));
  if (!settings.json.empty()) HEARTH_TRY(write_file(settings.json, json_of(load, outcome)));
  if (settings.plot.empty()) return 0;
  const std::string title = fmt::format("{}: {}, {}", settings.file, said, options.memory);
  HEARTH_TRY(write_file(settings.plot, simulation_svg(load, outcome, title)));
  return 0;
}

// Step costs of each model of the file, as keys of a load's [[model]].
Result<int> fit(const std::string& path) {
  HEARTH_TRY_ASSIGN(const std::vector<ModelSteps> models, read_steps(path));
  std::string out;
  for (const ModelSteps& model : models) {
    const CostFit fitted = fit_step_cost(model.steps);
    const StepCost& cost = fitted.cost;
    out += fmt::format(
        "# {} steps: off by {:.1f} % in the median, {:.1f} % at the 90th percentile, {:+.1f} % of their sum\n"
        "name = {}\nstep_us = {:.6g}\nprefill_token_us = {:.6g}\nsequence_us = {:.6g}\ncontext_token_us = {:.6g}\n"
        "prefill_pair_us = {:.6g}\n\n",
        fitted.steps, 100 * fitted.median_error, 100 * fitted.p90_error, 100 * fitted.total_error,
        nlohmann::json(model.model).dump(), cost.step_us, cost.prefill_token_us, cost.sequence_us,
        cost.context_token_us, cost.prefill_pair_us);
  }
  HEARTH_TRY(write_stdout(out));
  return 0;
}

}  // namespace

Command add_simulate_command(CLI::App& app) {
  auto* const command = app.add_subcommand("simulate", "Play a load of requests under a virtual clock");
  command->footer(kHelp);
  const auto settings = std::make_shared<SimulateSettings>();
  command->add_option("LOADFILE", settings->file, "The load (TOML).");
  add_choice(*command, "--policy", kPolicies, "Who gets the next step.", settings->options.policy);
  add_choice(*command, "--memory", kMemories, "Who has which KV memory.", settings->options.memory);
  command->add_flag("--reject-hopeless", settings->options.reject_hopeless,
                    "Refuse requests whose first token would be late.");
  add_setting(*command, kRate, settings->changes.rate, "the file's");
  add_load_changes(*command, settings->changes, "Options");
  add_setting(*command, kSwapMib, settings->swap_mib, "the file's");
  add_setting(*command, kSeed, settings->changes.seed, "the file's");
  add_text(*command, "--plot", "FILE", "Write a picture over time (SVG).", settings->plot);
  add_text(*command, "--json", "FILE", "Write the outcome as JSON.", settings->json);
  add_text(*command, "--requests", "FILE", "Instead of simulating: write the load's requests as a trace (CSV).",
           settings->requests);
  add_text(*command, "--fit", "FILE",
           "The machine that ran the steps in FILE (hearth serve --step-log): its step costs, instead of the file's. "
           "Without LOADFILE they are printed.",
           settings->fit);
  return {command, [settings]() -> Result<int> {
            if (settings->file.empty() && !settings->fit.empty()) return fit(settings->fit);
            if (settings->file.empty()) return invalid_argument("no load: wanted LOADFILE, or --fit FILE");
            return run(*settings);
          }};
}

}  // namespace hearth
