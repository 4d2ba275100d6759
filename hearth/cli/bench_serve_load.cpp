// SPDX-License-Identifier: Apache-2.0
// hearth bench serve --load: a file of several models as the plan of a run. The main thread.
#include <algorithm>

#include "hearth/cli/bench_serve.h"
#include "hearth/client/mixed_plan.h"

namespace hearth {
namespace {

// The load's models at the server, in the load's order.
Result<std::vector<ModelCard>> find_models(const BenchSettings& s, const Load& load, const BenchServer& server) {
  auto listed = list_models(server.context, server.client, server.stop);
  std::vector<ModelCard> found;
  // Some servers have no such list.
  if (!listed && listed.error().code == ErrorCode::kNotFound) {
    for (const LoadModel& m : load.models) found.push_back({.id = m.name, .max_model_len = std::nullopt});
    return found;
  }
  if (!listed) return std::move(listed).error();
  std::vector<std::string> missing, there;
  for (const ModelCard& card : *listed) there.push_back(card.id);
  for (const LoadModel& m : load.models) {
    const auto card = std::ranges::find(*listed, m.name, &ModelCard::id);
    if (card == listed->end()) {
      missing.push_back(m.name);
    } else {
      found.push_back(*card);
    }
  }
  if (missing.empty()) return found;
  return not_found("the server lacks models of {}: {}; it has: {}", s.load, fmt::join(missing, ", "),
                   there.empty() ? "none" : fmt::format("{}", fmt::join(there, ", ")));
}

}  // namespace

Result<BenchPlan> plan_load(const BenchSettings& s, std::optional<double> rate, const BenchServer& server) {
  LoadChanges changes = s.changes;
  changes.rate = rate;
  changes.seed = s.seed;
  BenchPlan bench;
  HEARTH_TRY_ASSIGN(bench.load, read_changed_load(s.load, changes, "--request-rate"));
  const Load& load = *bench.load;
  HEARTH_TRY_ASSIGN(const std::vector<ModelCard> cards, find_models(s, load, server));
  MixedPlanSettings settings;
  settings.ignore_eos = s.ignore_eos && !s.heed_eos;
  settings.send_targets = !s.hide_targets;
  settings.temperature = s.temperature;
  settings.extra_body = s.extra_body;
  for (const ModelCard& card : cards) {
    HEARTH_TRY_ASSIGN(std::vector<int32_t> ids, prompt_token_ids(s, server, card.id));
    settings.models.push_back({.max_context = card.max_model_len.value_or(0), .token_ids = std::move(ids)});
    bench.models.push_back(card.id);
  }
  for (const LoadModel& m : load.models) bench.slos.push_back(m.slo);
  bench.seed = load.seed;
  HEARTH_TRY_ASSIGN(bench.plan, make_mixed_plan(load, std::move(settings)).with_context(s.load));
  return bench;
}

}  // namespace hearth
