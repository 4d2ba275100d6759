// SPDX-License-Identifier: Apache-2.0
// The passes of a report against eval's single commands, going on after a stop, what the state keeps apart, and
// what a report says.
#include "hearth/eval/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"
#include "hearth/checkpoint/test_util.h"
#include "hearth/eval/kl.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

using testing::HasSubstr;
using testing_util::TempFolder;

constexpr uint64_t kSeed = 23;
constexpr int64_t kCtx = 16;

std::shared_ptr<const Model> load(ThreadPool& pool, DType activation = DType::kF32) {
  auto checkpoint = Checkpoint::open("tests/fixtures/llama3");
  HEARTH_CHECK(checkpoint.has_value(), "{}", checkpoint.error().message);
  auto model = Model::load(*checkpoint, cpu_ops(), {.activation = activation}, pool);
  HEARTH_CHECK(model.has_value(), "{}", model.error().message);
  return *model;
}

std::vector<int32_t> random_ids(int64_t count, uint64_t stream) {
  Random random(kSeed, stream);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(64)));
  return ids;
}

// A reference in f32 and a model that differs from it by the rounding of bf16.
class ReportScores : public testing::Test {
 protected:
  Runner runner(DType activation, int64_t slots = 1) {
    const auto model = load(pool_, activation);
    auto made = Runner::create(model, eval_runner_options(*model, 64, KvFormatId::kF32, slots), pool_);
    HEARTH_CHECK(made.has_value(), "{}", made.error().message);
    return std::move(made).value();
  }
  ReportModel named(std::string name, Runner& runner) {
    return {
        .name = std::move(name), .logits = logits_key("weights", runner.model(), KvFormatId::kF32), .runner = &runner};
  }
  Status score(std::span<const ReportModel> models, ReportState& state, const EvalControl& control = {}) {
    return score_windows(reference_, models, ids_, kCtx, windows_, state, control);
  }
  std::vector<WindowSums> sums_of(const ReportModel& model, const ReportState& state) const {
    std::vector<WindowSums> sums;
    const std::string key = window_key(model, reference_, ids_fingerprint(ids_), kCtx);
    for (const int64_t w : windows_)
      if (const WindowSums* found = state.window(key, w)) sums.push_back(*found);
    return sums;
  }

  ThreadPool pool_{2};
  Runner f32_ = runner(DType::kF32), bf16_ = runner(DType::kBf16);
  ReportModel reference_ = named("reference", f32_), rounded_ = named("rounded", bf16_);
  std::vector<int32_t> ids_ = random_ids(6 * kCtx + 3, 0);
  std::vector<int64_t> windows_ = {0, 1, 3, 5};
};

// A window's sums are its own, however many lie side by side, and whether some of them are known.
TEST_F(ReportScores, WindowsSideBySideAreAsAlone) {
  ReportState alone, together;
  const ReportModel models[] = {reference_, rounded_};
  ASSERT_TRUE(score(models, alone));
  const auto wide = [&](DType activation) {
    const auto model = load(pool_, activation);
    const int64_t rows = 3 * rows_per_step(*model);
    auto made = Runner::create(
        model, {.max_sequences = 3, .max_context = 64, .chunk_tokens = rows, .max_logit_rows = rows}, pool_);
    HEARTH_CHECK(made.has_value(), "{}", made.error().message);
    return std::move(made).value();
  };
  Runner f32 = wide(DType::kF32), bf16 = wide(DType::kBf16);
  const ReportModel reference = named("reference", f32), wide_models[] = {reference, named("rounded", bf16)};
  // One window is there already.
  const int64_t second[] = {windows_[1]};
  ASSERT_TRUE(score_windows(reference, wide_models, ids_, kCtx, second, together));
  ASSERT_TRUE(score_windows(reference, wide_models, ids_, kCtx, windows_, together));
  for (const ReportModel& model : models) {
    const std::vector<WindowSums> wanted = sums_of(model, alone), found = sums_of(model, together);
    ASSERT_EQ(wanted.size(), 4U);
    ASSERT_EQ(found.size(), 4U);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(wanted[i].nll, found[i].nll) << i;
      EXPECT_EQ(wanted[i].nll_reference, found[i].nll_reference) << i;
      EXPECT_EQ(wanted[i].kl, found[i].kl) << i;
      EXPECT_EQ(wanted[i].kl_max, found[i].kl_max) << i;
      EXPECT_EQ(wanted[i].same_top, found[i].same_top) << i;
    }
  }
}

TEST_F(ReportScores, EqualPerplexityAndKl) {
  ReportState state;
  const ReportModel models[] = {reference_, rounded_};
  ASSERT_TRUE(score(models, state));
  const auto ppl = perplexity(bf16_, ids_, kCtx, windows_);
  const auto kl = kl_divergence(bf16_, f32_, ids_, kCtx, windows_);
  ASSERT_TRUE(ppl && kl);
  const QualityFigures f = quality_figures(sums_of(rounded_, state), {}, kCtx);
  // The same rows of logits; only the order of the sums differs.
  EXPECT_NEAR(f.ppl.value, ppl->ppl, 1e-12 * ppl->ppl);
  EXPECT_NEAR(f.kl.value, kl->kl, 1e-12);
  EXPECT_GT(f.kl.value, 1e-7);
  EXPECT_EQ(f.kl_max, kl->kl_max);
  EXPECT_DOUBLE_EQ(f.same_top.value, kl->same_top);
  const QualityFigures itself = quality_figures(sums_of(reference_, state), {}, kCtx);
  EXPECT_EQ(itself.kl.value, 0.0);
  EXPECT_EQ(itself.kl_max, 0.0);
  EXPECT_EQ(itself.ppl_rise.value, 0.0);
  EXPECT_EQ(itself.same_top.value, 1.0);
}

TEST_F(ReportScores, AModelWithARunnerOfItsOwnHasNoDivergenceFromItself) {
  Runner again = runner(DType::kF32);
  const ReportModel models[] = {named("again", again)};
  ReportState state;
  ASSERT_TRUE(score(models, state));
  for (const WindowSums& sums : sums_of(models[0], state)) {
    EXPECT_EQ(sums.kl, 0.0);
    EXPECT_EQ(sums.nll, sums.nll_reference);
    EXPECT_EQ(sums.same_top, kCtx);
  }
}

TEST_F(ReportScores, AStoppedRunGoesOnAndEndsTheSame) {
  const TempFolder dir;
  const auto file = dir.path() / "state.jsonl";
  const ReportModel models[] = {reference_, rounded_}, one[] = {rounded_};
  ReportState whole;
  ASSERT_TRUE(score(models, whole));
  std::atomic<bool> stop = false;
  {
    auto state = ReportState::open(file);
    ASSERT_TRUE(state) << state.error().message;
    const Status stopped =
        score(one, *state, {.progress = [&](int64_t done, int64_t) { stop = done == 2; }, .stop = &stop});
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
    EXPECT_EQ(sums_of(rounded_, *state).size(), 2u);
  }
  // As a kill in the middle of a write leaves it.
  std::ofstream(file, std::ios::app) << "{\"key\":\"windo";
  for (int run = 0; run < 2; ++run) {
    auto state = ReportState::open(file);
    ASSERT_TRUE(state) << state.error().message;
    EXPECT_EQ(sums_of(rounded_, *state).size(), run == 0 ? 2u : 4u);
    std::vector<int64_t> done;
    ASSERT_TRUE(score(models, *state, {.progress = [&](int64_t d, int64_t) { done.push_back(d); }, .stop = nullptr}));
    EXPECT_EQ(done.back(), 8);
    EXPECT_EQ(sums_of(rounded_, *state), sums_of(rounded_, whole));
    EXPECT_EQ(sums_of(reference_, *state), sums_of(reference_, whole));
  }
  // The header, and one line for each window of each model: the last run added none.
  const std::string text = testing_util::read_bytes(file);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 9);
}

TEST_F(ReportScores, SumsOfSomethingElseAreNotTaken) {
  ReportState state;
  const ReportModel models[] = {rounded_};
  ASSERT_TRUE(score(models, state));
  ReportModel changed = rounded_;
  changed.logits = logits_key("other weights", bf16_.model(), KvFormatId::kF32);
  EXPECT_TRUE(sums_of(changed, state).empty());
  changed.logits = logits_key("weights", bf16_.model(), KvFormatId::kBf16);
  EXPECT_TRUE(sums_of(changed, state).empty());
  changed.logits = logits_key("weights", f32_.model(), KvFormatId::kF32);
  EXPECT_TRUE(sums_of(changed, state).empty());
  const std::string ids = ids_fingerprint(ids_);
  EXPECT_NE(window_key(rounded_, reference_, ids, kCtx), window_key(rounded_, changed, ids, kCtx + 1));
  EXPECT_NE(window_key(rounded_, reference_, ids, kCtx), window_key(rounded_, rounded_, ids, kCtx));
  ids_[0] ^= 1;
  EXPECT_TRUE(sums_of(rounded_, state).empty());
}

TEST_F(ReportScores, ItemsGoOnToo) {
  Runner slots = runner(DType::kBf16, 4);
  const ReportModel model = named("rounded", slots);
  std::vector<LambadaItem> items;
  for (uint64_t i = 0; i < 70; ++i)
    items.push_back(
        {.context = random_ids(3 + static_cast<int64_t>(i % 5), i), .continuation = random_ids(2, 100 + i)});
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < 70; i += i % 7 == 3 ? 2 : 1) chosen.push_back(i);
  const auto direct = lambada(slots, items, 4);
  ASSERT_TRUE(direct) << direct.error().message;
  const TempFolder dir;
  const auto file = dir.path() / "state.jsonl";
  const std::string key = item_key(model, items);
  const auto some = std::span(chosen).first(10);
  for (const std::span<const int64_t> part : {std::span<const int64_t>(some), std::span<const int64_t>(chosen)}) {
    auto state = ReportState::open(file);
    ASSERT_TRUE(state) << state.error().message;
    ASSERT_TRUE(score_items(model, items, part, 4, *state));
  }
  const auto state = ReportState::open(file);
  ASSERT_TRUE(state) << state.error().message;
  for (int64_t i = 0; i < 70; ++i) {
    const LambadaScore* score = state->item(key, i);
    if (!std::binary_search(chosen.begin(), chosen.end(), i)) {
      EXPECT_EQ(score, nullptr);
      continue;
    }
    ASSERT_NE(score, nullptr);
    EXPECT_EQ(score->logprob, direct->scores[static_cast<size_t>(i)].logprob) << "item " << i << ", seed " << kSeed;
    EXPECT_EQ(score->hit, direct->scores[static_cast<size_t>(i)].hit);
  }
  items[69].context[0] ^= 1;
  EXPECT_NE(item_key(model, items), key);
}

TEST(ReportState, RefusesOtherFiles) {
  const TempFolder dir;
  const auto open = [](const std::filesystem::path& path) {
    const auto state = ReportState::open(path);
    return state ? "no error" : state.error().message;
  };
  EXPECT_THAT(open(dir.put("notes.txt", "my notes, no newline")), HasSubstr("is no state of a report"));
  EXPECT_EQ(testing_util::read_bytes(dir.path() / "notes.txt"), "my notes, no newline");
  EXPECT_THAT(open(dir.put("old", "{\"hearth_report_state\":99}\n")), HasSubstr("line 1: version 99"));
  EXPECT_THAT(open(dir.put("hole", "{\"hearth_report_state\":1}\nnonsense\n{}\n")), HasSubstr("line 2"));
  EXPECT_THAT(open(dir.put("short", "{\"hearth_report_state\":1}\n{\"key\":\"k\",\"window\":[1,2],\"sums\":[1]}\n")),
              HasSubstr("'window' and 'sums'"));
  EXPECT_THAT(open(dir.path() / "no" / "folder"), HasSubstr("cannot open"));
}

TEST(Speed, CountsTheTimeOfTheClock) {
  ThreadPool pool(1);
  const auto model = load(pool);
  auto runner = Runner::create(model, eval_runner_options(*model, 24, KvFormatId::kF32), pool);
  ASSERT_TRUE(runner) << runner.error().message;
  // Every look at the clock takes a second: one for the prompt, one for all tokens after it.
  class Ticking final : public Clock {
   public:
    int64_t now_ns() const override { return ++ticks_ * 1'000'000'000; }

   private:
    mutable int64_t ticks_ = 0;
  };
  const auto sample = measure_speed(*runner, {.prompt_tokens = 16, .decode_tokens = 8}, Ticking());
  ASSERT_TRUE(sample) << sample.error().message;
  EXPECT_EQ(sample->prefill_s, 1);
  EXPECT_EQ(sample->decode_s, 1);
  EXPECT_EQ(runner->context(0), 24);
  EXPECT_THAT(measure_speed(*runner, {.prompt_tokens = 17, .decode_tokens = 8}, Ticking()).error().message,
              HasSubstr("the context holds 24"));
}

Report small_report() {
  Report report;
  report.texts = {{.name = "book", .list = "book_2", .ctx = 10, .count = 2}};
  report.lambada = ReportText{.name = "last_words", .list = "all", .ctx = 0, .count = 2};
  report.rows.resize(3);
  const char* const names[] = {"ref", "base|line", "best"};
  for (size_t i = 0; i < 3; ++i) {
    ReportRow& row = report.rows[i];
    row.name = names[i];
    row.model = "tiny";
    row.variant = "plain";
    row.kv = "f32";
    row.bits_per_weight = i == 0 ? 16 : 4.125;
    row.checkpoint_bytes = 2'500'000;
    const double extra = i == 0 ? 0 : i == 1 ? 1 : 0.25;
    row.windows = {{{.nll = 20 + extra, .nll_reference = 20, .kl = extra, .kl_max = extra, .same_top = 9},
                    {.nll = 24 + extra, .nll_reference = 24, .kl = extra, .kl_max = extra, .same_top = 10}}};
    row.items = {{true, -1}, {i == 0, -2}};
    row.speed = {{.prefill_s = 0.5, .decode_s = i == 1 ? 1.0 : 0.5}, {.prefill_s = 0.5, .decode_s = 0.5}};
  }
  report.baseline = 1;
  report.device = "CPU, 1 thread";
  report.command = "hearth eval --report";
  return report;
}

TEST(Report, LinesCarryTheFigures) {
  const std::vector<nlohmann::json> lines = report_lines(small_report());
  ASSERT_EQ(lines.size(), 12u);  // text, LAMBADA, prefill, decode of three rows
  const nlohmann::json &best = lines[8], &lambada = lines[9], &decode = lines[11];
  EXPECT_EQ(best["bench"], "eval.quality");
  EXPECT_EQ(best["name"], "best");
  EXPECT_EQ(best["against"], "ref");
  EXPECT_EQ(best["baseline"], "base|line");
  EXPECT_EQ(best["list"], "book_2");
  EXPECT_EQ(best["tokens"], 20);
  EXPECT_EQ(best["bits_per_weight"], 4.125);
  EXPECT_DOUBLE_EQ(best["ppl"].get<double>(), std::exp(2.225));
  EXPECT_NEAR(best["ppl_rise"].get<double>(), std::exp(2.225) - std::exp(2.2), 1e-12);
  EXPECT_DOUBLE_EQ(best["kl"].get<double>(), 0.025);
  EXPECT_DOUBLE_EQ(best["kl_share"].get<double>(), 0.25);
  EXPECT_NEAR(best["rise_share"].get<double>(), std::expm1(0.025) / std::expm1(0.1), 1e-12);
  EXPECT_TRUE(best.contains("rise_share_standard_error"));
  EXPECT_EQ(best["same_top"], 0.95);
  EXPECT_EQ(lambada["lambada_acc"], 0.5);
  EXPECT_EQ(lambada["lambada_change"], -0.5);
  EXPECT_EQ(decode["bench"], "model.decode");
  EXPECT_EQ(decode["speed_ratio"], 1.5);
  EXPECT_EQ(decode["tokens_per_s"], 64);
}

TEST(Report, MarkdownIsATable) {
  const std::string text = report_markdown(small_report());
  EXPECT_THAT(text, HasSubstr("| base line | "));
  EXPECT_THAT(text, HasSubstr("2 windows of 10 tokens (list: book_2)"));
  EXPECT_THAT(text, HasSubstr("LAMBADA: 2 items of last_words (list: all)"));
  EXPECT_THAT(text, HasSubstr("Shares and ratios are of base line's figure in this run."));
  // With one of two windows left out, nll is 2.025 or 2.425, of the reference 2 or 2.4: half of what the figures differ
  // by.
  EXPECT_THAT(text, HasSubstr("| best | f32 | 9.253 ± 1.863 | 0.2285 ± 0.0460 | 25.000 ± 0.000 | 95.00 ± 5.00 | "));
  // Every row of a table has as many cells as its head.
  size_t bars = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end - begin);
    const auto count = static_cast<size_t>(std::count(line.begin(), line.end(), '|'));
    EXPECT_TRUE(bars == 0 || count == 0 || count == bars) << line;
    bars = count;
    begin = end + 1;
  }
  Report bare = small_report();
  bare.baseline.reset();
  bare.lambada.reset();
  for (ReportRow& row : bare.rows) row.speed.clear();
  EXPECT_THAT(report_markdown(bare), testing::Not(HasSubstr("baseline")));
  EXPECT_EQ(report_lines(bare).size(), 3u);
}

}  // namespace
}  // namespace hearth
