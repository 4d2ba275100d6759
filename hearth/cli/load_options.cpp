// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/load_options.h"

#include <algorithm>

namespace hearth {
namespace {

constexpr Setting<double> kRateScale{
    "--rate-scale", "X", 1e-6, 1e6, "", "Of a load file: 2: requests come twice as dense, recorded ones too."};
constexpr Setting<double> kSeconds{"--seconds", "S", 1, 1e7, "s", "Of a load file: how long requests come."};

}  // namespace

void add_load_changes(CLI::App& app, LoadChanges& changes, const char* group) {
  add_setting(app, kRateScale, changes.rate_scale, "the file's")->group(group);
  add_setting(app, kSeconds, changes.seconds, "the file's")->group(group);
}

Result<Load> read_changed_load(const std::string& file, const LoadChanges& changes, const char* rate_flag) {
  HEARTH_TRY_ASSIGN(Load load, read_load(file));
  const auto drawn = [](const LoadModel& m) { return m.trace.empty(); };
  if (changes.rate && std::ranges::none_of(load.models, drawn))
    return invalid_argument("{}: all requests of {} are recorded; wanted --rate-scale", rate_flag, file);
  load.rate = changes.rate.value_or(load.rate);
  load.rate_scale = changes.rate_scale.value_or(load.rate_scale);
  load.seconds = changes.seconds.value_or(load.seconds);
  if (changes.seed) load.seed = static_cast<uint64_t>(*changes.seed);
  if (load.warmup_seconds >= load.seconds)
    return invalid_argument("--seconds {} is not more than the file's warm-up of {} s", load.seconds,
                            load.warmup_seconds);
  return load;
}

}  // namespace hearth
