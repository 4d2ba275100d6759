// SPDX-License-Identifier: Apache-2.0
#include "hearth/client/mixed_plan.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "hearth/base/check.h"
#include "hearth/client/request_body.h"

namespace hearth {
namespace {

struct Source {
  uint64_t seed = 0;
  nlohmann::json extra;
  std::vector<BodyTerms> terms;                 // by model
  std::vector<std::vector<int32_t>> token_ids;  // by model
  std::vector<PlannedRequest> requests;

  std::string body(size_t index) const {
    const PlannedRequest& r = requests[index];
    const auto m = static_cast<size_t>(r.model);
    return fmt::format("{},\"prompt\":{}}}", open_body(terms[m], r.output_tokens, extra),
                       ids_text(draw_prompt(token_ids[m], r.input_tokens, seed, index)));
  }
};

Status check_contexts(const Load& load, const std::vector<PlannedRequest>& requests,
                      const std::vector<MixedModel>& models) {
  for (size_t m = 0; m < models.size(); ++m) {
    const PlannedRequest* longest = nullptr;
    int64_t all = 0, too_long = 0;
    for (const PlannedRequest& r : requests) {
      if (r.model != static_cast<int64_t>(m)) continue;
      ++all;
      const int64_t tokens = r.input_tokens + r.output_tokens;
      too_long += tokens > models[m].max_context;
      if (longest == nullptr || tokens > longest->input_tokens + longest->output_tokens) longest = &r;
    }
    if (models[m].max_context == 0 || too_long == 0) continue;
    return invalid_argument(
        "{} of {} requests are longer than the context of {} tokens of '{}' (the longest: {} + {}); max_input_tokens "
        "and max_output_tokens of its [[model]] cut them",
        too_long, all, models[m].max_context, load.models[m].name, longest->input_tokens, longest->output_tokens);
  }
  return {};
}

}  // namespace

Result<LoadPlan> make_mixed_plan(const Load& load, MixedPlanSettings settings) {
  HEARTH_CHECK(settings.models.size() == load.models.size(), "{} models of {}", settings.models.size(),
               load.models.size());
  const auto source = std::make_shared<Source>();
  source->seed = load.seed;
  std::set<std::string> names;
  for (const LoadModel& m : load.models)
    if (!names.insert(m.name).second)
      return invalid_argument("a second model '{}'; a server has one of a name", m.name);
  HEARTH_TRY_ASSIGN(source->extra, parse_extra_body(settings.extra_body));
  for (const LoadRequest& r : draw_requests(load))
    source->requests.push_back({.arrival_s = static_cast<double>(r.arrival_us) * 1e-6,
                                .input_tokens = r.input_tokens,
                                .output_tokens = r.output_tokens,
                                .model = r.model});
  if (source->requests.empty())
    return invalid_argument("no request comes within {} s; a higher rate or more seconds bring some", load.seconds);
  HEARTH_TRY(check_contexts(load, source->requests, settings.models));
  for (size_t m = 0; m < load.models.size(); ++m) {
    source->terms.push_back({.model = load.models[m].name,
                             .ignore_eos = settings.ignore_eos,
                             .temperature = settings.temperature,
                             .slo = settings.send_targets ? load.models[m].slo : Slo{}});
    source->token_ids.push_back(std::move(settings.models[m].token_ids));
  }
  return LoadPlan{.requests = source->requests, .recorded_times = false, .make_body = [source](size_t index) {
                    return source->body(index);
                  }};
}

}  // namespace hearth
