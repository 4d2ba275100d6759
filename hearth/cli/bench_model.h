// SPDX-License-Identifier: Apache-2.0
// What `hearth bench model` measures, in llama-bench's terms: ppN, the prompt of one sequence in steps of at most
// step_tokens; tgN, N tokens of each sequence of a batch, one a step, logits of all of them on the host. Tokens are
// random and nothing is sampled. One thread, which drives a Runner.
#pragma once

#include <cstdint>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/model/runner.h"

namespace hearth {

struct ModelBench {
  std::shared_ptr<const Model> model;
  KvFormatId kv_format = KvFormatId::kF32;
  ThreadPool* pool = nullptr;
  const Clock* clock = nullptr;
  int64_t step_tokens = 512;
  int64_t repetitions = 3;
  bool decode_graphs = true;
};

// One row of the table.
struct ModelBenchTest {
  bool decode = false;  // tg, else pp
  int64_t tokens = 0;   // of each sequence
  int64_t batch = 1;    // sequences; of pp always 1
  int64_t depth = 0;    // tokens in the context before
};

struct ModelBenchResult {
  double tokens_per_s = 0, tokens_per_s_deviation = 0;  // median and standard deviation over the repetitions
  double us = 0, us_p10 = 0, us_p90 = 0;                // of a step (tg) or of the whole prompt (pp)
  double floor_tokens_per_s = 0;  // tg: if every step took as long as reading its bytes; 0: unknown
};

// Tokens a second and times. `bytes_per_s`: of read_speed(), for the floor; 0: unknown. Errors of Runner.
Result<ModelBenchResult> run_model_bench(const ModelBench& bench, const ModelBenchTest& test, double bytes_per_s);

// Bytes a second that the model's memory can be read with: on the CPU the weights are summed up by all threads, on a
// GPU a copy within its memory is timed, which reads and writes. 0 where there is no room for that.
Result<double> read_speed(const ModelBench& bench);

// Numbers that the model has: weights of linears, embedding, norms.
int64_t count_parameters(const ModelConfig& config);

}  // namespace hearth
