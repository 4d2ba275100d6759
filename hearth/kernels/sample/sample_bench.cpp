// SPDX-License-Identifier: Apache-2.0
// Times sample_cpu on rows of LLM-like and of flat logits: one row on one thread, then 64 rows on all.
//   sample_bench [--out FILE]     FILE: jsonl lines are appended
// The floor is one read of the row by the same core. Sixteen rows take turns, so that no row stays in L2.
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/bench_report.h"
#include "hearth/kernels/sample/sample.h"

namespace hearth {
namespace {

constexpr int64_t kRows = 64;
constexpr int kRepeats = 201;

struct Mode {
  std::string_view name;
  SamplingParams params;
  int32_t top_logprobs = kNoLogprobs;
  bool masked = false;
};

constexpr Mode kModes[] = {
    {.name = "greedy", .params = {.temperature = 0}},
    {.name = "greedy, logprob", .params = {.temperature = 0}, .top_logprobs = 0},
    {.name = "greedy, top 20 logprobs", .params = {.temperature = 0}, .top_logprobs = 20},
    {.name = "greedy, grammar mask", .params = {.temperature = 0}, .masked = true},
    {.name = "plain", .params = {}},
    {.name = "top_k 50", .params = {.top_k = 50}},
    {.name = "top_p 0.95", .params = {.top_p = 0.95f}},
    {.name = "temperature 0.7, top_p 0.9", .params = {.temperature = 0.7f, .top_p = 0.9f}},
    {.name = "top_k 50, top_p 0.95", .params = {.top_k = 50, .top_p = 0.95f}},
    {.name = "top_k 20000, top_p 0.95", .params = {.top_k = 20000, .top_p = 0.95f}},
    {.name = "min_p 0.05", .params = {.min_p = 0.05f}},
    {.name = "penalties, top_p 0.95",
     .params = {.top_p = 0.95f, .repetition_penalty = 1.1f, .frequency_penalty = 0.2f}},
};

// LLM-like: a broad body and a few dozen candidates above it. Flat: a Gaussian of unit width.
std::vector<float> make_logits(bool flat, int64_t vocab) {
  Random random(7);
  std::vector<float> logits(static_cast<size_t>(kRows * vocab));
  for (float& logit : logits) logit = random.normal() * (flat ? 1.0f : 2.0f);
  for (int64_t r = 0; r < kRows && !flat; ++r) {
    for (int i = 0; i < 40; ++i) {
      logits[static_cast<size_t>(r * vocab + random.below(vocab))] = random.uniform(8.0f, 18.0f);
    }
  }
  return logits;
}

struct Bench {
  ThreadPool pool;
  std::vector<std::byte> memory;
  ExecContext exec;
  int64_t vocab;
  std::vector<float> logits;
  std::vector<int32_t> history;
  std::vector<uint32_t> mask;

  Bench(int threads, bool flat, int64_t vocab_size)
      : pool(threads),
        memory(static_cast<size_t>(sample_cpu_workspace_bytes(vocab_size, pool.size()) + 64)),
        vocab(vocab_size),
        logits(make_logits(flat, vocab_size)) {
    exec.pool = &pool;
    const size_t skip = (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    exec.workspace = std::span(memory).subspan(skip, memory.size() - 64);
    Random random(8);
    for (int i = 0; i < 2000; ++i) history.push_back(static_cast<int32_t>(random.below(vocab)));
    for (int64_t w = 0; w < (vocab + 31) / 32; ++w) mask.push_back(random.below(4) == 0 ? random.next_u32() : 0);
  }

  Samples time(const Mode& mode, int64_t rows) {
    std::vector<SampleRow> row(static_cast<size_t>(rows));
    std::vector<SampleResult> results(static_cast<size_t>(rows));
    std::vector<TokenLogprob> top(static_cast<size_t>(rows * kMaxTopLogprobs));
    for (int64_t r = 0; r < rows; ++r) {
      row[r] = {.params = mode.params, .prompt_tokens = history, .output_tokens = history};
      row[r].top_logprobs = mode.top_logprobs;
      if (mode.masked) row[r].allowed = mask;
      results[r].top = std::span(top).subspan(static_cast<size_t>(r * kMaxTopLogprobs), kMaxTopLogprobs);
    }
    Samples samples;
    for (int i = 0; i < kRepeats; ++i) {
      for (SampleRow& one : row) one.position = i;
      const int64_t first = rows == 1 ? i % 16 : 0;
      const SampleArgs args{ConstTensorView(logits.data() + first * vocab, DType::kF32, Shape{rows, vocab}), row,
                            results};
      const double us = time_us([&] { HEARTH_CHECK(sample_cpu(args, exec), "sampling failed"); });
      if (i > 4) samples.add(us);
    }
    return samples;
  }

  // Microseconds to read one row.
  Samples time_read() {
    Samples samples;
    uint64_t sink = 0;
    for (int i = 0; i < kRepeats; ++i) {
      const char* row = reinterpret_cast<const char*>(logits.data() + i % 16 * vocab);
      samples.add(time_us([&] {
        for (int64_t at = 0; at + 8 <= vocab * 4; at += 8) {
          uint64_t word;
          std::memcpy(&word, row + at, 8);
          sink += word;
        }
        asm volatile("" : : "r"(sink) : "memory");
      }));
    }
    return samples;
  }
};

void run(ResultLines& lines) {
  for (const int64_t vocab : {32000, 128256, 152064}) {
    for (const bool flat : {false, true}) {
      Bench one(1, flat, vocab), all(0, flat, vocab);
      const double floor_us = one.time_read().median();
      fmt::print("\nvocab {}, {} logits; one read of the row takes {:.0f} us\n", vocab, flat ? "flat" : "LLM-like",
                 floor_us);
      fmt::print("{:28} {:>10} {:>16} {:>24}\n", "", "1 row us", "p10-p90", "64 rows, all threads us");
      for (const Mode& mode : kModes) {
        const Samples single = one.time(mode, 1), batch = all.time(mode, kRows);
        fmt::print("{:28} {:10.1f} {:7.1f}-{:<8.1f} {:24.0f}\n", mode.name, single.median(), single.percentile(10),
                   single.percentile(90), batch.median());
        lines.write("op.sample", fmt::format("\"mode\": {}, \"logits\": \"{}\", \"vocab\": {}, \"us\": {:.1f}, "
                                             "\"us_p10\": {:.1f}, \"us_p90\": {:.1f}, \"floor_us\": {:.1f}, "
                                             "\"us_64_rows_all_threads\": {:.0f}",
                                             quote(mode.name), flat ? "flat" : "llm", vocab, single.median(),
                                             single.percentile(10), single.percentile(90), floor_us, batch.median()));
      }
    }
  }
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  std::string out;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--out" && i + 1 < argc) {
      out = argv[++i];
    } else {
      fmt::print(stderr, "usage: sample_bench [--out FILE]\n");
      return 2;
    }
  }
  hearth::ResultLines lines(out, hearth::ThreadPool::hardware_threads(), argc, argv, "");
  hearth::run(lines);
}
