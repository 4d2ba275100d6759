// SPDX-License-Identifier: Apache-2.0
// The quantized part of linear_bench: each format against plain weights in the same round.
#pragma once

#include <string>

#include "hearth/base/thread_pool.h"
#include "hearth/kernels/cpu/bench_report.h"

namespace hearth {

struct QuantizedBenchOptions {
  int reps = 0;      // 0: 20 rounds of one token, 7 of many
  std::string only;  // formats whose name begins so
};

// One to four tokens on Llama-3-8B's gate_up and down: the time of BF16's linear_cpu over the format's, per round.
void bench_quantized_decode(const QuantizedBenchOptions& options, ThreadPool& pool, ResultLines& lines);
// 512 tokens: the time of f32's linear_cpu over the format's, per round.
void bench_quantized_prefill(const QuantizedBenchOptions& options, ThreadPool& pool, ResultLines& lines);

}  // namespace hearth
