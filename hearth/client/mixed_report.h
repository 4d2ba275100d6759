// SPDX-License-Identifier: Apache-2.0
// The numbers of a load test of several models: those of load_report.h for each model and for all. Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "hearth/client/load_report.h"

namespace hearth {

struct MixedReport {
  std::vector<std::string> names;
  std::vector<LoadSummary> models;  // by the plan's models
  LoadSummary all;
};

// `scope.model` is set for each model in turn.
MixedReport summarize_models(const LoadResult& result, std::span<const std::string> names,
                             const std::vector<double>& percentiles, const Goals& goals, const SummaryScope& scope);

// report_table() of each model and of all, and last a line for each to compare them by.
std::string mixed_table(const MixedReport& report, const std::vector<std::string>& shown);

// report_json() of all, and of each model below "models".
nlohmann::json mixed_json(const MixedReport& report);

}  // namespace hearth
