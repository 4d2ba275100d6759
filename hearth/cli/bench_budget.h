// SPDX-License-Identifier: Apache-2.0
// What `hearth bench model --budget` measures: where the time of one step goes, part by part (step_profile.h), against
// what memory allows, and what the host adds. One thread, which drives a Runner.
#pragma once

#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/cli/bench_model.h"
#include "hearth/model/step_profile.h"

namespace hearth {

// One row of the table: all calls of a part in a step.
struct BudgetRow {
  std::string part;
  int64_t calls = 0;
  double us = 0, us_p10 = 0, us_p90 = 0;
  double bytes = 0;  // that the calls read and write, at least
  double flops = 0;  // of products and attention
};

struct Budget {
  std::vector<BudgetRow> rows;  // in the step's order
  double parts_us = 0;          // all rows together
  double step_us = 0;           // the step's ops one behind the other
  BudgetRow sampling;           // no calls: the step samples nothing
  bool samples_on_device = false;
  double called_us = 0;  // the step as it is called: arrays, ops, sampling, results on the host
  bool recorded = false;
  // What is neither an op nor sampling.
  double rest_us() const { return called_us - step_us - sampling.us; }
};

// The step of `test`: a token of each sequence behind its depth, sampled; or, for pp, the prompt in one step.
// InvalidArgument for a prompt longer than a step; errors of Runner.
Result<Budget> run_budget(const ModelBench& bench, const ModelBenchTest& test);

}  // namespace hearth
