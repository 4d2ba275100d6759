// SPDX-License-Identifier: Apache-2.0
// The sampler on a GPU against the CPU's, on the same bits of logits: tokens, outcomes and logprobs are equal, in
// random cases of every kind of parameter. And what it costs. Needs a GPU; as many threads as the machine has.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "hearth/kernels/gpu_test.h"
#include "hearth/kernels/sample/device_sampler.h"
#include "hearth/kernels/sample/sample_test_cases.h"
#include "hearth/kernels/some_cases_for_test.h"

namespace hearth {
namespace {

using Seconds = std::chrono::duration<double>;

// Logits on both sides, rows, and both samplers.
class Bench {
 public:
  // `history`: tokens of prompt and output together that a row may have.
  Bench(int64_t row_count, int64_t vocab_size, int64_t history = 4000)
      : rows_(row_count), vocab_(vocab_size), pool_(0) {
    host_.resize(static_cast<size_t>(row_count * vocab_size));
    auto buffer = DeviceBuffer::allocate(row_count * vocab_size * 4);
    EXPECT_TRUE(buffer) << buffer.error().message;
    device_ = *std::move(buffer);
    queue_ = *cuda_memory().create_queue();
    auto sampler = DeviceSampler::create(cuda_memory(), sample_packed_sm90,
                                         {.rows = row_count,
                                          .vocab = vocab_size,
                                          .adjusted_rows = row_count,
                                          .list_words = row_count * (2 * history + 1200 + (vocab_size + 31) / 32),
                                          .slots = row_count,
                                          .context = history});
    EXPECT_TRUE(sampler) << sampler.error().message;
    sampler_ = *std::move(sampler);
    memory_.resize(static_cast<size_t>(sample_cpu_workspace_bytes(vocab_size, pool_.size()) + 64));
  }

  int64_t vocab() const { return vocab_; }
  std::span<float> row(int64_t r) {
    return std::span(host_).subspan(static_cast<size_t>(r * vocab_), static_cast<size_t>(vocab_));
  }
  // New logits of rows [begin, end), from seeds.
  void refill(int64_t begin, int64_t end, uint64_t seed) {
    pool_.parallel_for(end - begin, 1, [&](int64_t from, int64_t to, int) {
      for (int64_t r = begin + from; r < begin + to; ++r) {
        Random random(seed, static_cast<uint64_t>(r));
        fill_logits(random, row(r));
        // A broken model, now and then.
        if (random.below(64) == 0) row(r)[static_cast<size_t>(random.below(vocab_))] = random.below(2) ? NAN : INFINITY;
      }
    });
    upload(begin, end);
  }
  void upload(int64_t begin, int64_t end) {
    const auto bytes = std::as_bytes(
        std::span(host_).subspan(static_cast<size_t>(begin * vocab_), static_cast<size_t>((end - begin) * vocab_)));
    ASSERT_TRUE(queue_->copy_in(device_.data() + begin * vocab_ * 4, bytes));
    ASSERT_TRUE(queue_->synchronize());
  }

  // Both samplers over the first rows; those without a slot are of new sequences.
  void compare(std::vector<SampleRow> rows) {
    const size_t count = rows.size();
    for (size_t r = 0; r < count; ++r)
      if (rows[r].slot < 0) rows[r].slot = static_cast<int64_t>(r), rows[r].sequence = ++sequences_;
    std::vector<SampleResult> wanted(count), found(count);
    std::vector<TokenLogprob> tops(2 * count * kMaxTopLogprobs);
    for (size_t r = 0; r < count; ++r) {
      wanted[r].top = std::span(tops).subspan(2 * r * kMaxTopLogprobs, kMaxTopLogprobs);
      found[r].top = std::span(tops).subspan((2 * r + 1) * kMaxTopLogprobs, kMaxTopLogprobs);
    }
    const Shape shape{static_cast<int64_t>(count), vocab_};
    const size_t skip = (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
    ExecContext exec{.pool = &pool_, .workspace = std::span(memory_).subspan(skip, memory_.size() - 64)};
    const auto begin = std::chrono::steady_clock::now();
    (void)sample_cpu({ConstTensorView(host_.data(), DType::kF32, shape), rows, wanted}, exec);
    const auto middle = std::chrono::steady_clock::now();
    ASSERT_TRUE(sampler_.takes(rows));
    const Status status = sampler_.sample({ConstTensorView(device_.data(), DType::kF32, shape), rows, found}, *queue_,
                                          {.stream = queue_->stream()});
    gpu_s += Seconds(std::chrono::steady_clock::now() - middle).count();
    cpu_s += Seconds(middle - begin).count();
    const auto failed = [](const SampleResult& result) { return result.outcome != SampleOutcome::kOk; };
    ASSERT_TRUE(status || std::ranges::any_of(found, failed)) << status.error().message;
    for (size_t r = 0; r < count; ++r) {
      SCOPED_TRACE(fmt::format("row {} of {}, vocab {}", r, count, vocab_));
      expect_same(wanted[r], found[r], rows[r]);
      ++cases;
      drawn += wanted[r].outcome == SampleOutcome::kOk;
      if (::testing::Test::HasFatalFailure()) return;
    }
  }

  // Microseconds of a call: the kernel alone, in a row; and with the way there and back.
  std::pair<double, double> time(std::span<const SampleRow> rows) {
    constexpr int kRepeats = 50;
    std::vector<SampleResult> results(rows.size());
    std::vector<TokenLogprob> tops(rows.size() * kMaxTopLogprobs);
    for (size_t r = 0; r < rows.size(); ++r)
      results[r].top = std::span(tops).subspan(r * kMaxTopLogprobs, kMaxTopLogprobs);
    const ConstTensorView logits(device_.data(), DType::kF32, Shape{std::ssize(rows), vocab_});
    ExecContext exec{.stream = queue_->stream()};
    const auto whole = [&] { EXPECT_TRUE(sampler_.sample({logits, rows, results}, *queue_, exec)); };
    const auto measure = [&](auto work) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kRepeats; ++i) work();
      EXPECT_TRUE(queue_->synchronize());
      return Seconds(std::chrono::steady_clock::now() - begin).count() * 1e6 / kRepeats;
    };
    whole();
    measure(whole);
    const double whole_us = measure(whole);
    const auto alone = [&] { EXPECT_TRUE(sample_packed_sm90(sampler_.packed(logits), exec)); };
    measure(alone);
    return {measure(alone), whole_us};
  }

  int64_t cases = 0, drawn = 0;
  double cpu_s = 0, gpu_s = 0;

 private:
  int64_t rows_, vocab_;
  ThreadPool pool_;
  std::vector<float> host_;
  DeviceBuffer device_;
  std::unique_ptr<Queue> queue_;
  DeviceSampler sampler_;
  uint64_t sequences_ = 0;
  std::vector<std::byte> memory_;
};

// `cases` random rows in batches of 64, now and then of fewer or more, which take other clusters.
void compare_many(Bench& bench, int64_t most_rows, int64_t cases, int64_t refilled, uint64_t seed) {
  Random random(seed);
  bench.refill(0, most_rows, seed);
  for (int64_t batch = 0; bench.cases < cases; ++batch) {
    SCOPED_TRACE(fmt::format("seed {}, batch {}", seed, batch));
    const int64_t count = std::min(most_rows, batch % 8 == 7 ? pick<int64_t>(random, {1, 5, 12, 13, 30, 31, 67}) : 64);
    const int64_t first = random.below(most_rows - std::min(refilled, most_rows) + 1);
    bench.refill(first, first + std::min(refilled, most_rows), random.next_u64());
    std::vector<SampleRow> rows(static_cast<size_t>(count));
    std::vector<Extras> extras(static_cast<size_t>(count));
    for (size_t r = 0; r < rows.size(); ++r) fill_row(random, bench.vocab(), rows[r], extras[r]);
    bench.compare(rows);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(SampleSm90, EqualsTheCpuAtTheEdges) {
  for (const int64_t vocab : {1, 2, 31, 64, 127, 129, 1009, 4097, 50257}) {
    Bench bench(80, vocab);
    compare_many(bench, 80, 1500, 80, 7000 + static_cast<uint64_t>(vocab));
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// Every way through the kernel, in as few launches as that takes: for compute-sanitizer.
TEST(SampleSm90, FewCases) {
  for (const int64_t vocab : {1009, 20000}) {
    Random random(77);
    for (const int64_t count : {31, 13, 5}) {
      Bench bench(count, vocab);
      bench.refill(0, count, static_cast<uint64_t>(vocab + count));
      std::vector<SampleRow> rows(static_cast<size_t>(count));
      std::vector<Extras> extras(static_cast<size_t>(count));
      for (size_t r = 0; r < rows.size(); ++r) fill_row(random, vocab, rows[r], extras[r]);
      bench.compare(rows);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// More changed tokens than a CTA counts at once and than its shared memory holds.
TEST(SampleSm90, EqualsTheCpuWithLongHistories) {
  constexpr int64_t kRows = 64, kHistory = 100000;
  for (const int64_t vocab : {32000, 128256}) {
    const uint64_t seed = 600 + static_cast<uint64_t>(vocab);
    Bench bench(kRows, vocab, kHistory);
    bench.refill(0, kRows, seed);
    Random random(seed);
    for (const int64_t count : {kRows, int64_t{20}, int64_t{5}}) {
      SCOPED_TRACE(fmt::format("seed {}, {} rows", seed, count));
      std::vector<SampleRow> rows(static_cast<size_t>(count));
      std::vector<Extras> extras(static_cast<size_t>(count));
      for (size_t r = 0; r < rows.size(); ++r) {
        fill_row(random, vocab, rows[r], extras[r]);
        for (auto* const list : {&extras[r].prompt, &extras[r].output}) {
          list->resize(static_cast<size_t>(random.below(kHistory / 2)));
          for (int32_t& token : *list) token = static_cast<int32_t>(random.below(vocab));
        }
        rows[r].prompt_tokens = extras[r].prompt;
        rows[r].output_tokens = extras[r].output;
        rows[r].params.frequency_penalty = 0.25f;
        rows[r].params.repetition_penalty = 1.1f;
      }
      bench.compare(rows);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Histories that grow from call to call, in clusters of every size; now and then another sequence takes a slot.
TEST(SampleSm90, HistoriesStayOnTheDevice) {
  for (const int64_t count : {5, 20, 64}) {
    if (count > 64 / one_case_in() + 1) break;  // a sanitizer checks every access of shared memory
    const int64_t vocab = 20011 / one_case_in();
    const uint64_t seed = 6100 + static_cast<uint64_t>(count);
    SCOPED_TRACE(fmt::format("seed {}, {} rows", seed, count));
    Bench bench(count, vocab, 12000);
    bench.refill(0, count, seed);
    Random random(seed);
    std::vector<SampleRow> rows(static_cast<size_t>(count));
    std::vector<Extras> extras(rows.size());
    const auto more = [&](std::vector<int32_t>& to, int64_t tokens) {
      for (; tokens > 0; --tokens) to.push_back(static_cast<int32_t>(random.below(vocab) / (1 + random.below(50))));
    };
    const int64_t steps = std::max<int64_t>(40 / one_case_in(), 3);
    for (int64_t step = 0; step < steps; ++step) {
      SCOPED_TRACE(fmt::format("step {}", step));
      for (size_t r = 0; r < rows.size(); ++r) {
        Extras& own = extras[r];
        if (step == 0 || random.below(12) == 0) {
          const uint64_t sequence = rows[r].sequence + 1;
          own = {};
          rows[r] = {};
          fill_row(random, vocab, rows[r], own);
          rows[r].params.repetition_penalty = 1.1f;
          rows[r].forced_token = -1;
          rows[r].slot = count - 1 - static_cast<int64_t>(r);
          rows[r].sequence = sequence;
          more(own.prompt, random.below(10000 / one_case_in()));
        }
        more(own.output, random.below(30) == 0 ? 20 : 1 + random.below(2));
        rows[r].prompt_tokens = own.prompt;
        rows[r].output_tokens = own.output;
      }
      bench.compare(rows);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(SampleSm90, EqualsTheCpuIn100000Cases) {
  int64_t cases = 0, drawn = 0;
  for (const auto& [vocab, share] :
       {std::pair{int64_t{32000}, 50000}, {128256, 30000}, {152064, 20000}, {kMaxPackedVocab, 1000}}) {
    const auto begin = std::chrono::steady_clock::now();
    Bench bench(80, vocab);
    compare_many(bench, 80, share, 8, 90 + static_cast<uint64_t>(vocab));
    if (::testing::Test::HasFatalFailure()) return;
    cases += bench.cases;
    drawn += bench.drawn;
    fmt::print("vocab {}: {} cases equal in {:.1f} s (CPU sampler {:.1f} s, GPU {:.1f} s)\n", vocab, bench.cases,
               Seconds(std::chrono::steady_clock::now() - begin).count(), bench.cpu_s, bench.gpu_s);
  }
  EXPECT_GE(cases, 100000);
  EXPECT_GT(drawn, cases * 3 / 4) << "most random rows must mean something";
}

// Logits of a language model: a broad body and a few dozen candidates above it. Flat: a Gaussian of unit width.
TEST(SampleSm90, Costs) {
  struct Mode {
    const char* name;
    SamplingParams params;
    int32_t top_logprobs = kNoLogprobs;
    size_t history = 2000;  // tokens of prompt and as many of output
  };
  const Mode modes[] = {{"greedy", {.temperature = 0}},
                        {"plain", {}},
                        {"top_k 50", {.top_k = 50}},
                        {"top_p 0.95", {.top_p = 0.95f}},
                        {"0.7, top_k 50, top_p 0.9", {.temperature = 0.7f, .top_k = 50, .top_p = 0.9f}},
                        {"top_k 20000, top_p 0.95", {.top_k = 20000, .top_p = 0.95f}},
                        {"min_p 0.05", {.min_p = 0.05f}},
                        {"plain, logprob", {}, 0},
                        {"plain, top 20", {}, 20},
                        {"penalties, top_p 0.95", {.top_p = 0.95f, .repetition_penalty = 1.1f}},
                        {"penalties of 2 x 16,000", {.top_p = 0.95f, .repetition_penalty = 1.1f}, kNoLogprobs, 16000}};
  for (const int64_t vocab : {32000, 128256, 152064}) {
    Bench bench(64, vocab, 32000);
    std::vector<int32_t> history;
    uint64_t sequence = 0;
    Random random(8);
    for (int i = 0; i < 16000; ++i) history.push_back(static_cast<int32_t>(random.below(vocab)));
    for (const bool flat : {false, true}) {
      for (int64_t r = 0; r < 64; ++r) {
        Random own(9, static_cast<uint64_t>(r));
        // Sums of uniform numbers are nearly Gaussian, and quick.
        for (float& logit : bench.row(r)) {
          logit = 0;
          for (int i = 0; i < 4; ++i) logit += own.uniform(-0.866f, 0.866f);
          if (!flat) logit *= 2;
        }
        for (int i = 0; i < 40 && !flat; ++i)
          bench.row(r)[static_cast<size_t>(own.below(vocab))] = own.uniform(8.0f, 18.0f);
      }
      bench.upload(0, 64);
      for (const Mode& mode : modes) {
        std::vector<SampleRow> rows(64);
        ++sequence;
        for (size_t r = 0; r < rows.size(); ++r)
          rows[r] = {.params = mode.params,
                     .position = static_cast<int64_t>(r),
                     .prompt_tokens = std::span(history).first(mode.history),
                     .output_tokens = std::span(history).first(mode.history),
                     .slot = static_cast<int64_t>(r),
                     .sequence = sequence,
                     .top_logprobs = mode.top_logprobs};
        const auto [us, whole_us] = bench.time(rows);
        const auto [one_us, one_whole_us] = bench.time({rows.data(), 1});
        fmt::print("vocab {:6} {:4} {:26} 64 rows {:6.1f} us, with copies {:6.1f}; 1 row {:6.1f}, {:6.1f}\n", vocab,
                   flat ? "flat" : "llm", mode.name, us, whole_us, one_us, one_whole_us);
        EXPECT_LE(us, 60) << mode.name;
      }
    }
  }
}

}  // namespace
}  // namespace hearth
