// SPDX-License-Identifier: Apache-2.0
// fable-13m and fable-82m on a GPU against transformers (golden.json), and FP8 on the GPU against FP8 on the CPU: what
// users get from --device cuda. fable-82m and the evaluation texts are found by HEARTH_DATA; without it their tests are
// skipped. Label gpu: without a device every test here fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "hearth/base/clock.h"
#include "hearth/checkpoint/test_util.h"
#include "hearth/eval/perplexity.h"
#include "hearth/eval/tokens.h"
#include "hearth/model/golden_for_test.h"
#include "hearth/quantize/pipeline.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

struct Case {
  const char* name;
  // The largest difference of a log probability between transformers in BF16 and the golden values, on an H100
  // (bench/peers/golden_bf16_torch.py); 0: not measured yet. HEARTH_BF16_LARGEST, "fable-13m=0.06 fable-82m=0.05", is
  // the same for the machine at hand.
  double bf16_largest;
};
constexpr Case kCases[] = {{"fable-13m", 0.05889}, {"fable-82m", 0.05543}};

const char* data_folder() { return std::getenv("HEARTH_DATA"); }

// Empty: not here.
fs::path folder_of(std::string_view name) {
  if (name == "fable-13m") return "models/fable-13m";
  if (data_folder() == nullptr) return {};
  fs::path folder = fs::path(data_folder()) / "models" / name;
  return fs::exists(folder / "golden.json") ? folder : fs::path();
}

double bf16_largest(const Case& c) {
  const char* const measured = std::getenv("HEARTH_BF16_LARGEST");
  if (measured == nullptr) return c.bf16_largest;
  const std::string_view all = measured, key = c.name;
  const size_t at = all.find(key);
  if (at == std::string_view::npos || all.substr(at + key.size()).substr(0, 1) != "=") return c.bf16_largest;
  return std::strtod(all.data() + at + key.size() + 1, nullptr);
}

using testing::Differences;

Differences differences_of(std::span<const double> a, std::span<const double> b) {
  EXPECT_EQ(a.size(), b.size());
  Differences out;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) out.add(a[i] - b[i]);
  return out;
}

// Which of the two largest logits is larger, and by how much.
struct Best {
  int32_t id = 0;
  float margin = 0;
};
Best best_of(std::span<const float> logits) {
  Best best;
  best.id = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
  best.margin = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i)
    if (static_cast<int32_t>(i) != best.id)
      best.margin = std::min(best.margin, logits[static_cast<size_t>(best.id)] - logits[i]);
  return best;
}

struct Compute {
  const OpTable* ops = cuda_ops();
  DType activation = DType::kBf16;
  KvFormatId kv = KvFormatId::kBf16;
};

std::shared_ptr<const Model> load(const fs::path& dir, const Compute& how, ThreadPool& pool) {
  return testing::load_model(dir, pool, {.activation = how.activation}, *how.ops);
}

struct GoldenRun {
  std::vector<double> logprobs, golden;  // of every token of the prompts
  int64_t same = 0, tokens = 0;          // greedy ones
  float largest_margin_of_others = 0;    // of the logits that chose another token than the golden one
  std::string others;                    // for people
};

// The prompts of `prompts_of`'s golden.json. Greedy tokens are chosen after the golden text, which goes on, so that one
// near tie does not hide what follows: where all agree, the model's own text is the golden one. Each is a decode step,
// replayed as a graph on a GPU.
GoldenRun run_golden(const fs::path& dir, const fs::path& prompts_of, const Compute& how) {
  ThreadPool pool(0);
  Runner runner = testing::make_runner(load(dir, how, pool), pool,
                                       {.max_context = 512, .kv_format = how.kv, .decode_batches = {1}});
  GoldenRun out;
  int64_t prompt = 0;
  for (const testing::GoldenPrompt& golden : testing::read_golden(prompts_of)) {
    runner.cut(0, 0);
    const testing::Rows rows = testing::all_logits(runner, 0, golden.ids, 512);
    for (size_t i = 1; i < golden.ids.size(); ++i) {
      out.logprobs.push_back(testing::log_softmax(rows[i - 1], golden.ids[i]));
      out.golden.push_back(golden.token_logprobs[i]);
    }
    std::vector<float> last = rows.back();
    for (size_t i = 0; i < golden.greedy_ids.size(); ++i) {
      const int32_t wanted = golden.greedy_ids[i];
      const Best best = best_of(last);
      ++out.tokens;
      out.same += best.id == wanted;
      if (best.id != wanted) {
        out.largest_margin_of_others = std::max(out.largest_margin_of_others, best.margin);
        out.others += fmt::format("  prompt {} token {}: {} instead of {}, {:.4f} before the next\n", prompt, i,
                                  best.id, wanted, best.margin);
      }
      auto logits = runner.feed(0, {&wanted, 1});
      EXPECT_TRUE(logits) << logits.error().message;
      if (!logits) return out;
      last = testing::copy_rows(*logits).front();
    }
    ++prompt;
  }
  return out;
}

std::vector<TokenId> ids_of(const fs::path& dir, std::string_view text) {
  auto tokenizer = Tokenizer::load(dir);
  HEARTH_CHECK(tokenizer.has_value(), "{}", tokenizer.error().message);
  auto ids = encode_documents(*tokenizer, text);
  HEARTH_CHECK(ids.has_value(), "{}", ids.error().message);
  return *std::move(ids);
}

class GoldenCuda : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    dir_ = folder_of(GetParam().name);
    if (dir_.empty()) GTEST_SKIP() << "no " << GetParam().name << ": HEARTH_DATA names the folder of models/ and data/";
  }
  fs::path dir_;
};

// Log probabilities 0.015 off in the mean, and at most twice as far as another implementation's in BF16. The same ids,
// but for near ties: where a token is less than 0.1 before the next, rounding to BF16 decides (one of fable-13m's 288
// falls the other way on a CPU, 0.035 before).
TEST_P(GoldenCuda, Bf16AgreesWithTransformers) {
  const GoldenRun run = run_golden(dir_, dir_, {});
  const Differences off = differences_of(run.logprobs, run.golden);
  const double peer = bf16_largest(GetParam());
  fmt::print(
      "{} in BF16: log probabilities {:.5f} off in the mean, {:.5f} at most (transformers in BF16: {}), over {}; {} of "
      "{} greedy tokens\n{}",
      GetParam().name, off.mean(), off.largest, peer > 0 ? fmt::format("{:.5f}", peer) : "not measured", off.count,
      run.same, run.tokens, run.others);
  EXPECT_LE(off.mean(), 0.015);
  if (peer > 0) {
    EXPECT_LE(off.largest, 2 * peer);
  }
  EXPECT_LE(run.largest_margin_of_others, 0.1f) << run.others;
  EXPECT_GE(run.same, run.tokens - 3) << run.others;  // 1 % of them
}

// Whole texts, every window: within 0.03 % of transformers in float32.
TEST_P(GoldenCuda, Bf16PerplexitiesAreTheGoldenOnes) {
  if (data_folder() == nullptr) GTEST_SKIP() << "HEARTH_DATA is not set: it names the folder that holds data/eval";
  auto golden = read_json_object(dir_ / "golden.json");
  ASSERT_TRUE(golden) << golden.error().message;
  ThreadPool pool(0);
  const auto model = load(dir_, {}, pool);
  int texts = 0;
  for (const char* text : {"wikitext2_test", "heldout_books"}) {
    const fs::path file = fs::path(data_folder()) / "data/eval" / (std::string(text) + ".txt");
    if (!fs::exists(file)) continue;
    ++texts;
    const SteadyClock clock;
    const int64_t begin_ns = clock.now_ns();
    const auto& wanted = (*golden)[std::string("ppl_") + text];
    auto content = read_text_file(file);
    ASSERT_TRUE(content) << content.error().message;
    const std::vector<TokenId> ids = ids_of(dir_, *content);
    const auto ctx = wanted["ctx"].get<int64_t>();
    std::vector<int64_t> windows(wanted["windows"].get<size_t>());
    std::iota(windows.begin(), windows.end(), 0);
    ASSERT_EQ(count_windows(std::ssize(ids), ctx).value(), std::ssize(windows)) << "other ids than the golden ones";
    auto runner = Runner::create(model, eval_runner_options(*model, ctx, KvFormatId::kBf16), pool);
    ASSERT_TRUE(runner) << runner.error().message;
    const auto found = perplexity(*runner, ids, ctx, windows);
    ASSERT_TRUE(found) << found.error().message;
    const auto ppl = wanted["ppl"].get<double>();
    fmt::print("{} in BF16, {}: perplexity {:.5f}, golden {:.5f}: {:+.4f} %; {} tokens in {:.1f} s\n", GetParam().name,
               text, found->ppl, ppl, 100 * (found->ppl / ppl - 1), found->tokens,
               static_cast<double>(clock.now_ns() - begin_ns) * 1e-9);
    EXPECT_EQ(found->tokens, wanted["tokens"].get<int64_t>());
    EXPECT_NEAR(found->ppl / ppl, 1, 3e-4);
  }
  if (texts == 0) GTEST_SKIP() << "no texts in " << data_folder() << "/data/eval";
}

// Negative log-likelihood of each window.
std::vector<double> window_nlls(const fs::path& dir, const Compute& how, std::span<const TokenId> ids, int64_t ctx,
                                int64_t count) {
  ThreadPool pool(0);
  const auto model = load(dir, how, pool);
  auto runner = Runner::create(model, eval_runner_options(*model, ctx, how.kv), pool);
  HEARTH_CHECK(runner.has_value(), "{}", runner.error().message);
  std::vector<double> nlls;
  for (int64_t w = 0; w < count; ++w) {
    const auto found = perplexity(*runner, ids, ctx, {&w, 1});
    HEARTH_CHECK(found.has_value(), "{}", found.error().message);
    nlls.push_back(found->nll_per_token);
  }
  return nlls;
}

// The documentation: any text does, as both sides read the same.
std::string some_text() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator("docs"))
    if (entry.path().extension() == ".md") files.push_back(entry.path());
  std::ranges::sort(files);
  std::string text;
  for (const fs::path& file : files) text += read_text_file(file).value();
  return text;
}

void quantize_to_fp8(const fs::path& source, const fs::path& out) {
  ThreadPool pool(0);
  QuantizeOptions options;
  options.to = "fp8";
  const auto made = quantize_model(source, out, options, pool, {});
  ASSERT_TRUE(made) << made.error().message;
}

// FP8 rounds activations to E4M3: a last bit in another order of sums moves some number over the middle between two
// codes, what follows moves others, and after a few layers two correct runs are as far apart as independent roundings.
// fable-13m's log probabilities, FP8 made by the default options, 116 tokens, mean and largest difference: reference
// and CPU, both in float32 and equal but for the order of sums, 0.035 and 0.30; CPU in BF16 and in float32 0.089 and
// 0.34; CPU and float32 weights 0.074 and 0.31. A bound of 0.015 would refuse the CPU itself. So the measure is what
// the CPU's own arithmetic leaves open, taken here from the same checkpoint: the GPU is no farther from the CPU than
// the CPU in BF16 is from the CPU in float32, by a quarter at most; no farther from transformers than they are; and
// without a bias, which is what a wrong scale would show: over windows of text its mean log-likelihood is the CPU's
// within 0.03 % and three standard errors.
TEST_P(GoldenCuda, Fp8IsTheCpusFp8) {
  const testing_util::TempFolder folder;
  const fs::path fp8 = folder.path() / "fp8";
  ASSERT_NO_FATAL_FAILURE(quantize_to_fp8(dir_, fp8));
  const Compute f32{.ops = &cpu_ops(), .activation = DType::kF32, .kv = KvFormatId::kF32};
  const Compute bf16{.ops = &cpu_ops()};
  const GoldenRun cpu = run_golden(fp8, dir_, f32), cpu16 = run_golden(fp8, dir_, bf16),
                  gpu = run_golden(fp8, dir_, {});
  const Differences between = differences_of(gpu.logprobs, cpu16.logprobs),
                    to_f32 = differences_of(gpu.logprobs, cpu.logprobs),
                    open = differences_of(cpu16.logprobs, cpu.logprobs),
                    lost = differences_of(gpu.logprobs, gpu.golden),
                    cpu_lost = differences_of(cpu.logprobs, cpu.golden),
                    cpu16_lost = differences_of(cpu16.logprobs, cpu.golden);
  const auto print = [&](const char* what, const Differences& d) {
    fmt::print("{} in FP8, {}: {:.5f} in the mean, {:.5f} at most\n", GetParam().name, what, d.mean(), d.largest);
  };
  print("GPU from CPU, both BF16", between);
  print("GPU from CPU in float32", to_f32);
  print("CPU in BF16 from CPU in float32", open);
  print("GPU from transformers", lost);
  print("CPU in float32 from transformers", cpu_lost);
  print("CPU in BF16 from transformers", cpu16_lost);
  fmt::print("greedy tokens: GPU {}, CPU {}, CPU in BF16 {} of {}; GPU's others\n{}", gpu.same, cpu.same, cpu16.same,
             gpu.tokens, gpu.others);
  EXPECT_LE(between.mean(), 1.25 * open.mean());
  EXPECT_LE(to_f32.mean(), 1.25 * open.mean());
  EXPECT_LE(between.largest, 2 * open.largest);
  EXPECT_LE(lost.mean(), 1.25 * std::max(cpu_lost.mean(), cpu16_lost.mean()));
  EXPECT_LE(gpu.largest_margin_of_others, 2 * std::max(cpu_lost.largest, cpu16_lost.largest))
      << "another greedy token where none was near:\n"
      << gpu.others;

  constexpr int64_t kCtx = 256, kWindows = 64;
  const std::vector<TokenId> ids = ids_of(dir_, some_text());
  ASSERT_GT(std::ssize(ids), kCtx * kWindows);
  const std::vector<double> wanted = window_nlls(fp8, bf16, ids, kCtx, kWindows),
                            found = window_nlls(fp8, {}, ids, kCtx, kWindows);
  double mean = 0, square = 0;
  for (size_t w = 0; w < wanted.size(); ++w) mean += (found[w] - wanted[w]) / kWindows;
  for (size_t w = 0; w < wanted.size(); ++w) square += std::pow(found[w] - wanted[w] - mean, 2);
  const double error = std::sqrt(square / (kWindows - 1) / kWindows);
  fmt::print("{} in FP8: perplexity {:+.4f} % off the CPU's over {} windows of {}, standard error {:.4f} %\n",
             GetParam().name, 100 * std::expm1(mean), kWindows, kCtx, 100 * error);
  EXPECT_LE(std::abs(mean), 3e-4 + 3 * error);
  EXPECT_LE(error, 2e-3) << "windows that say nothing";
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenCuda, ::testing::ValuesIn(kCases), [](const auto& test) {
  std::string name = test.param.name;
  std::erase(name, '-');
  return name;
});

}  // namespace
}  // namespace hearth
