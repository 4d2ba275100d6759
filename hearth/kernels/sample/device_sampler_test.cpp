// SPDX-License-Identifier: Apache-2.0
// Tests of DeviceSampler and of what it keeps on a device, with the obvious loops over packed rows in place of a kernel,
// against sample_ref. One thread.
#include "hearth/kernels/sample/device_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/kernels/sample/sample_test_cases.h"
#include "hearth/memory/fake_device_for_test.h"

namespace hearth {
namespace {

struct Batch {
  Batch(int64_t row_count, int64_t vocab_size)
      : vocab(vocab_size), logits(row_count * vocab_size), rows(row_count), results(row_count), tops(row_count) {}

  std::span<float> row(int64_t r) { return std::span(logits).subspan(r * vocab, vocab); }
  ConstTensorView view() const { return {logits.data(), DType::kF32, Shape{std::ssize(rows), vocab}}; }
  void make_room() {
    for (size_t r = 0; r < rows.size(); ++r) {
      tops[r].assign(std::max(0, rows[r].top_logprobs), {});
      results[r] = {.top = tops[r]};
    }
  }
  Status run() {
    make_room();
    ThreadPool pool(1);
    ExecContext exec{.pool = &pool};
    return sample_ref({view(), rows, results}, exec);
  }

  int64_t vocab;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<SampleResult> results;
  std::vector<std::vector<TokenLogprob>> tops;
};

// Rows that travel packed, sampled by the obvious loops over the block, are the same rows.
TEST(DeviceSampler, PackedRowsGiveTheSameResults) {
  constexpr uint64_t kSeed = 21;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  const Memory& memory = hearth::testing::fake_device();
  auto queue = memory.create_queue();
  ASSERT_TRUE(queue);
  for (const int64_t vocab : {1, 31, 129, 1009}) {
    const int64_t count = 200;
    Batch wanted(count, vocab);
    std::vector<Extras> extras(count);
    for (int64_t r = 0; r < count; ++r) {
      fill_logits(random, wanted.row(r));
      fill_row(random, vocab, wanted.rows[r], extras[r]);
      wanted.rows[r].slot = count - 1 - r;
      wanted.rows[r].sequence = 1;
    }
    const Status status = wanted.run();
    Batch found = wanted;
    auto sampler = DeviceSampler::create(memory, sample_packed_ref,
                                         {.rows = count,
                                          .vocab = vocab,
                                          .adjusted_rows = count,
                                          .list_words = count * 1000,
                                          .slots = count,
                                          .context = 200});
    ASSERT_TRUE(sampler) << sampler.error().message;
    ASSERT_TRUE(sampler->takes(found.rows));
    found.make_room();
    const Status found_status = sampler->sample({found.view(), found.rows, found.results}, **queue, {});
    EXPECT_EQ(status.has_value(), found_status.has_value());
    for (int64_t r = 0; r < count; ++r) {
      SCOPED_TRACE(fmt::format("vocab {} row {}", vocab, r));
      expect_same(wanted.results[r], found.results[r], wanted.rows[r]);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(DeviceSampler, TakesWhatItIsPlannedFor) {
  auto sampler =
      DeviceSampler::create(hearth::testing::fake_device(), sample_packed_ref,
                            {.rows = 2, .vocab = 100, .adjusted_rows = 1, .list_words = 10, .slots = 1, .context = 12});
  ASSERT_TRUE(sampler) << sampler.error().message;
  const std::vector<int32_t> banned(6, 3);
  std::vector<SampleRow> rows(2);
  EXPECT_TRUE(sampler->takes(rows));
  rows[0].banned = banned;
  EXPECT_TRUE(sampler->takes(rows));
  rows[1].banned = std::span(banned).first(1);
  EXPECT_TRUE(sampler->takes(rows)) << "two rows that change logits, one after the other";
  rows[1] = {};
  rows[0].prompt_tokens = rows[0].output_tokens = banned;
  EXPECT_TRUE(sampler->takes(rows)) << "a history that no penalty reads";
  rows[0].params.presence_penalty = 1;
  rows[0].slot = 0;
  rows[0].sequence = 1;
  EXPECT_FALSE(sampler->takes(rows)) << "6 words, and 24 for 12 tokens";
  rows[0].banned = {};
  rows[0].prompt_tokens = std::span(banned).first(3);
  rows[0].output_tokens = std::span(banned).first(2);
  EXPECT_TRUE(sampler->takes(rows)) << "10 words";
  rows[0].slot = -1;
  EXPECT_FALSE(sampler->takes(rows)) << "a history without a slot";
  rows[0].slot = 1;
  EXPECT_FALSE(sampler->takes(rows)) << "a slot that is none";
  rows[0].slot = 0;
  const std::vector<int32_t> long_prompt(7, 3);
  rows[0].prompt_tokens = long_prompt;
  rows[0].output_tokens = banned;
  EXPECT_FALSE(sampler->takes(rows)) << "a history of 13 tokens";
  rows = std::vector<SampleRow>(2);
  const std::vector<uint32_t> allowed(8, 3);
  rows[0].allowed = rows[1].allowed = std::span(allowed).first(4);
  EXPECT_TRUE(sampler->takes(rows)) << "a mask that both share changes no single logit";
  rows[1].banned = std::span(banned).first(2);
  EXPECT_TRUE(sampler->takes(rows));
  rows[1].allowed = std::span(allowed).last(4);
  rows[1].banned = std::span(banned).first(3);
  EXPECT_TRUE(sampler->takes(rows)) << "11 words, 4 and 7";
  EXPECT_FALSE(sampler->takes(std::vector<SampleRow>(3)));
  EXPECT_FALSE(DeviceSampler().takes({}));
}

int64_t calls = 0;        // of the op below
int64_t call_fails = -1;  // which one does
Status count_calls(const SamplePackedArgs& args, ExecContext& exec) {
  if (calls++ == call_fails) return internal_error("a launch that fails");
  return sample_packed_ref(args, exec);
}

// Rows whose histories together are longer than a block are sampled in turns, and brought once all the same; after an
// error all come anew.
TEST(DeviceSampler, ManyHistoriesComeInTurns) {
  constexpr uint64_t kSeed = 92;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  const Memory& memory = hearth::testing::fake_device();
  auto queue = memory.create_queue();
  ASSERT_TRUE(queue);
  constexpr int64_t kRows = 5, kVocab = 5000, kTokens = 400;
  auto sampler = DeviceSampler::create(memory, count_calls,
                                       {.rows = kRows,
                                        .vocab = kVocab,
                                        .adjusted_rows = kRows,
                                        .list_words = 2 * kTokens,
                                        .slots = kRows,
                                        .context = kTokens});
  ASSERT_TRUE(sampler) << sampler.error().message;
  Batch wanted(kRows, kVocab);
  std::vector<std::vector<int32_t>> prompts(kRows);
  for (std::vector<int32_t>& prompt : prompts)
    for (int i = 0; i < 300; ++i) prompt.push_back(static_cast<int32_t>(random.below(kVocab)));
  std::vector<int32_t> outputs;
  calls = 0, call_fails = 7;
  for (int step = 0; step < 6; ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    for (int64_t r = 0; r < kRows; ++r) {
      fill_logits(random, wanted.row(r));
      SampleRow& row = wanted.rows[r];
      row.params = {.repetition_penalty = 1.3f, .seed = random.next_u64()};
      row.position = step, row.slot = r, row.sequence = 1;
      row.prompt_tokens = prompts[r], row.output_tokens = outputs;
    }
    (void)wanted.run();
    Batch found = wanted;
    found.make_room();
    ASSERT_TRUE(sampler->takes(found.rows));
    const int64_t before = calls;
    const Status sampled = sampler->sample({found.view(), found.rows, found.results}, **queue, {});
    // The launch that fails is that of step 3; histories of 300 tokens are one a block.
    EXPECT_EQ(calls - before, step == 0 || step == 4 ? kRows : 1);
    EXPECT_EQ(sampled.has_value(), step != 3);
    if (sampled)
      for (int64_t r = 0; r < kRows; ++r) expect_same(wanted.results[r], found.results[r], wanted.rows[r]);
    outputs.push_back(static_cast<int32_t>(random.below(kVocab)));
  }
}

// What the last call brought of histories, of all rows together.
int64_t brought_count = 0;
Status count_brought(const SamplePackedArgs& args, ExecContext& exec) {
  brought_count = 0;
  for (int64_t r = 0; r < args.logits.rows(); ++r) {
    PackedSampleRow row;
    std::memcpy(&row, args.block + r * static_cast<int64_t>(sizeof(row)), sizeof(row));
    brought_count += row.added.count + row.bumped.count;
  }
  return sample_packed_ref(args, exec);
}

TEST(DeviceSampler, BringsTokensOnce) {
  constexpr uint64_t kSeed = 91;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  const Memory& memory = hearth::testing::fake_device();
  auto queue = memory.create_queue();
  ASSERT_TRUE(queue);
  constexpr int64_t kRows = 4, kVocab = 97, kPrompt = 30, kTokens = 60;
  auto sampler = DeviceSampler::create(memory, count_brought,
                                       {.rows = kRows,
                                        .vocab = kVocab,
                                        .adjusted_rows = kRows,
                                        .list_words = 2 * kRows * kTokens,
                                        .slots = kRows,
                                        .context = kTokens});
  ASSERT_TRUE(sampler) << sampler.error().message;
  Batch wanted(kRows, kVocab);
  std::vector<std::vector<int32_t>> prompts(kRows), outputs(kRows);
  int64_t expected = 0;
  const auto different = [](std::vector<int32_t> tokens, const std::vector<int32_t>& others) {
    tokens.insert(tokens.end(), others.begin(), others.end());
    return std::ssize(std::set<int32_t>(tokens.begin(), tokens.end()));
  };
  const auto start = [&](int64_t r, uint64_t sequence) {
    wanted.rows[r].slot = kRows - 1 - r;
    wanted.rows[r].sequence = sequence;
    prompts[r].assign(kPrompt, 0);
    for (int32_t& token : prompts[r]) token = static_cast<int32_t>(random.below(kVocab));
    outputs[r].clear();
    expected += different(prompts[r], {});
  };
  for (int64_t r = 0; r < kRows; ++r) start(r, 1);
  for (int step = 0; step < 20; ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    if (step == 9) {  // another sequence takes the slot
      start(2, 2);
      --expected;
    }
    if (step == 13) {  // preempted: the same tokens come anew
      wanted.rows[1].sequence = 5;
      expected += different(prompts[1], outputs[1]) - 1;
    }
    for (int64_t r = 0; r < kRows; ++r) {
      fill_logits(random, wanted.row(r));
      SampleRow& row = wanted.rows[r];
      row.params = {.repetition_penalty = 1.3f, .seed = random.next_u64()};
      row.params.frequency_penalty = 0.2f;
      row.position = step;
      row.prompt_tokens = prompts[r];
      row.output_tokens = outputs[r];
    }
    (void)wanted.run();
    Batch found = wanted;
    found.make_room();
    ASSERT_TRUE(sampler->takes(found.rows));
    (void)sampler->sample({found.view(), found.rows, found.results}, **queue, {});
    EXPECT_EQ(brought_count, expected);
    expected = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      expect_same(wanted.results[r], found.results[r], wanted.rows[r]);
      outputs[r].push_back(std::max(found.results[r].token, 0));
      ++expected;
    }
  }
}

// I1, I2: whatever is called, the device's list is that of the history.
TEST(SampleHistories, AreWholeWhateverIsCalled) {
  constexpr uint64_t kSeed = 92;
  SCOPED_TRACE(fmt::format("seed {}", kSeed));
  Random random(kSeed);
  constexpr int64_t kSlots = 3, kContext = 60, kVocab = 40;
  SampleHistories histories(kSlots, kContext, kVocab);
  ASSERT_EQ(histories.size_bytes(), kSlots * kVocab * 8);
  std::vector<HistoryEntry> device(kSlots * kVocab);
  std::vector<std::vector<int32_t>> prompts(kSlots), outputs(kSlots);
  std::vector<uint64_t> sequences(kSlots, 0);
  const auto more = [&](std::vector<int32_t>& to, int64_t count) {
    for (; count > 0; --count) to.push_back(static_cast<int32_t>(random.below(kVocab)));
  };
  int64_t words = 0, all = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto slot = static_cast<size_t>(random.below(kSlots));
    std::vector<int32_t>&prompt = prompts[slot], &output = outputs[slot];
    const int64_t kind = random.below(20);
    if (kind == 0 || sequences[slot] == 0) {
      ++sequences[slot];
      prompt.clear();
      output.clear();
      more(prompt, random.below(20));
      more(output, random.below(5));
    } else if (kind == 1) {  // another prompt under the same number
      more(prompt, 1);
    } else if (kind == 2) {  // fewer outputs
      output.resize(static_cast<size_t>(random.below(std::ssize(output) + 1)));
    } else {
      more(output, kind == 3 ? random.below(15) : random.below(3));
    }
    if (kind == 4) histories.forget();
    const SampleRow row{.prompt_tokens = prompt,
                        .output_tokens = output,
                        .slot = static_cast<int64_t>(slot),
                        .sequence = sequences[slot]};
    const int64_t tokens = std::ssize(prompt) + std::ssize(output);
    ASSERT_EQ(histories.fits(row), tokens <= kContext);
    if (!histories.fits(row)) {
      sequences[slot] += 1, prompt.clear(), output.clear();
      continue;
    }
    if (kind > 2 && random.below(4) == 0) continue;  // sampled elsewhere: nothing is brought
    const int64_t most = histories.most_words(row), known = histories.known(row);
    const SampleHistories::Brought brought = histories.bring(row);
    const auto of_list = std::span(device).subspan(static_cast<size_t>(brought.before.begin));
    std::ranges::copy(brought.added, of_list.begin() + brought.before.entries);
    const auto list = of_list.first(static_cast<size_t>(brought.before.entries) + brought.added.size());
    for (const int32_t token : brought.bumped)
      ++std::ranges::find(list.first(static_cast<size_t>(brought.before.entries)), token, &HistoryEntry::token)->how;
    EXPECT_LE(std::ssize(brought.added) * 2 + std::ssize(brought.bumped), most);
    EXPECT_LE(std::ssize(brought.bumped), SampleHistories::kMostNew);
    EXPECT_EQ(histories.known(row), tokens);
    std::vector<uint32_t> wanted(kVocab), found(kVocab);
    for (const int32_t token : prompt) wanted[static_cast<size_t>(token)] = HistoryEntry::kOfPrompt;
    for (const int32_t token : output) ++wanted[static_cast<size_t>(token)];
    for (const HistoryEntry& entry : list) {
      ASSERT_EQ(found[static_cast<size_t>(entry.token)], 0u) << "twice in the list";
      found[static_cast<size_t>(entry.token)] = entry.how;
    }
    ASSERT_EQ(wanted, found);
    words += tokens - known;
    all += tokens;
  }
  EXPECT_LT(words, all / 2) << "most tokens were known already";
}

}  // namespace
}  // namespace hearth
