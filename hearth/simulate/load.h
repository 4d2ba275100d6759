// SPDX-License-Identifier: Apache-2.0
// A load: models, and the requests that come for them, drawn from a seed or recorded.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "hearth/base/result.h"
#include "hearth/schedule/cost_model.h"
#include "hearth/schedule/slo.h"
#include "hearth/simulate/step_spread.h"
#include "hearth/simulate/trace_file.h"

namespace hearth {

// Lengths as quantiles: values at ascending probabilities from 0 to 1, linear between them. Input and output are drawn
// apart: in the traces their correlation is below 0.12.
struct LengthTable {
  std::vector<double> probability, input_tokens, output_tokens;

  // Values at probability p.
  static double at(const std::vector<double>& probability, const std::vector<double>& value, double p);
};

struct LoadModel {
  std::string name;
  int64_t layers = 0;
  int64_t kv_token_bytes = 0;  // of all layers
  StepCost cost;               // what its steps truly take
  StepSpread spread;           // around that; empty: Load::noise
  Slo slo;
  double weight = 1;      // its part of the device's time beside others that have work too
  double cv = 1;          // coefficient of variation of the gaps between requests
  double popularity = 0;  // 0: by its place in the list and Load::alpha
  LengthTable lengths;
  int64_t max_input_tokens = 0, max_output_tokens = 0;  // longer ones are cut, drawn and recorded; 0: none is
  std::vector<TraceRequest> trace;                      // its requests, by arrival; empty: they are drawn
};

struct LoadRequest {
  int64_t arrival_us = 0;
  int64_t model = 0;
  int64_t input_tokens = 0, output_tokens = 0;
};

struct Load {
  uint64_t seed = 1;
  double seconds = 600;
  double warmup_seconds = 0;  // requests that come before do not count
  double rate = 1;            // requests per second, of all models whose requests are drawn
  double rate_scale = 1;      // 2: all requests come twice as dense, drawn and recorded ones
  double alpha = 1;           // the i-th most popular model gets a part of i^-alpha
  double shift_seconds = 0;   // so often popularity is dealt anew; 0: never
  double noise = 0;           // of step times: standard deviation, relative
  int64_t pool_bytes = 0;
  int64_t slab_bytes = int64_t{16} << 20;
  int64_t block_tokens = 16;
  int64_t step_tokens = 2048;
  int64_t max_sequences = 256;  // of one model
  int64_t steps_ahead = 1;      // planned while one computes
  double growth_blocks = 0.5;   // kept free for each running sequence
  int64_t swap_bytes = 0;       // of host memory for KV of preempted sequences
  double swap_us_per_mib = 40;  // there and back
  std::vector<LoadModel> models;
};

// Requests by arrival. The gaps of a model without a trace are Gamma with mean 1 and cv^2 as variance, in time
// stretched by its rate, so that a shift of popularity bends them and the sum of all rates stays.
std::vector<LoadRequest> draw_requests(const Load& load);

// They as a trace, in the columns that read_trace() knows.
std::string trace_csv(const Load& load, std::span<const LoadRequest> requests);

// The rate of each model, period after period of shift_seconds; 0 for those that have a trace.
std::vector<std::vector<double>> draw_rates(const Load& load);

}  // namespace hearth
