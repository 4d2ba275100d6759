// SPDX-License-Identifier: Apache-2.0
// What `hearth bench model` measures, in llama-bench's terms: ppN, the prompts of N tokens of a batch of sequences
// in steps of at most step_tokens; tgN, N tokens of each sequence of a batch, one a step, each the most likely one after the step before.
// Prompts are random. One thread, which drives a Runner.
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
  int64_t batch = 1;    // sequences
  int64_t depth = 0;    // tokens in the context before
};

struct ModelBenchResult {
  double tokens_per_s = 0, tokens_per_s_deviation = 0;  // median and standard deviation over the repetitions
  double us = 0, us_p10 = 0, us_p90 = 0;                // of a step (tg) or of all prompts (pp)
  double floor_tokens_per_s = 0;  // tg: if every step took as long as reading its bytes; 0: unknown
};

// Tokens a second and times. `bytes_per_s`: of read_speed(), for the floor; 0: unknown. Errors of Runner.
Result<ModelBenchResult> run_model_bench(const ModelBench& bench, const ModelBenchTest& test, double bytes_per_s);

// Bytes a second that the model's memory can be read with (bench_common.h), on the CPU its weights.
Result<double> read_speed(const ModelBench& bench);

// Numbers that the model has: weights of linears, embedding, norms.
int64_t count_parameters(const ModelConfig& config);

}  // namespace hearth
