// SPDX-License-Identifier: Apache-2.0
// hearth eval --report: several models judged side by side. Its options stand on `hearth eval` itself. The main
// thread only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hearth/cli/commands.h"
#include "hearth/cli/options.h"

namespace hearth {

struct EvalReportSettings {
  CommandContext context;
  ModelSettings run;                // all but the model and its KV format
  std::vector<std::string> models;  // [NAME=]PATH[@kv=FORMAT]
  std::string reference;            // the same
  std::string baseline;             // a name
  std::vector<std::string> texts;   // [NAME=]FILE
  std::string lambada;              // [NAME=]FILE
  std::vector<std::string> lists;   // files; none: everything
  std::optional<int64_t> ctx;
  int64_t limit = 0;
  int64_t together = 0;
  int64_t speed_rounds = 5;
  std::string state, markdown, results;
};

// Adds --report and the options that go with it; returns --report, which the other commands exclude.
CLI::Option* add_report_options(CLI::App& eval, EvalReportSettings& settings);

// InvalidArgument where --report or --reference is missing, nothing is to be measured, names come twice, a list suits
// no text, or a model has another vocabulary or tokenizer than the reference.
Result<int> run_report(const EvalReportSettings& settings);

}  // namespace hearth
