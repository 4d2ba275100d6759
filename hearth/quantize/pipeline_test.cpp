// SPDX-License-Identifier: Apache-2.0
// The quantizer from a folder to a folder, on fable-13m.
#include "hearth/quantize/pipeline.h"

#include <signal.h>
#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "hearth/checkpoint/test_util.h"
#include "hearth/model/golden_for_test.h"
#include "hearth/quantize/output.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using testing_util::read_bytes;
using testing_util::TempFolder;

constexpr const char* kModel = "models/fable-13m";

QuantizeOptions options_to(const std::string& format, const std::string& method) {
  QuantizeOptions options;
  options.to = format;
  options.method = method;
  return options;
}

// A few windows of the text that the repository has.
QuantizeOptions calibrated(const std::string& format, const std::string& method) {
  QuantizeOptions options = options_to(format, method);
  options.calibration = CalibrationOptions{.file = "docs/design/engine.md", .samples = 4, .length = 128};
  return options;
}

Result<QuantizeSummary> quantize(const QuantizeOptions& options, const fs::path& out, int threads = 2,
                                 const QuantizeControl& control = {}, const fs::path& model = kModel) {
  ThreadPool pool(threads);
  return quantize_model(model, out, options, pool, control);
}

std::map<std::string, std::string> contents(const fs::path& dir) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(dir)) files[entry.path().filename()] = read_bytes(entry.path());
  return files;
}

void expect_same(const fs::path& a, const fs::path& b) {
  const auto left = contents(a), right = contents(b);
  ASSERT_EQ(left.size(), right.size());
  for (const auto& [name, bytes] : left) EXPECT_TRUE(right.at(name) == bytes) << name << " differs";
}

// Mean negative log likelihood of the golden prompts' ids.
double golden_loss(const fs::path& dir, KvFormatId kv = KvFormatId::kF32) {
  ThreadPool pool(2);
  Runner runner = testing::make_runner(testing::load_model(dir, pool), pool, {.max_context = 512, .kv_format = kv});
  double sum = 0;
  int64_t count = 0;
  for (const testing::GoldenPrompt& prompt : testing::read_golden(kModel)) {
    runner.cut(0, 0);
    const testing::Rows rows = testing::all_logits(runner, 0, prompt.ids, 512);
    for (size_t i = 1; i < prompt.ids.size(); ++i, ++count) sum -= testing::log_softmax(rows[i - 1], prompt.ids[i]);
  }
  return sum / static_cast<double>(count);
}

struct FormatCase {
  const char* format;
  const char* method;
  double most_bits;
  double most_loss;  // above that of the plain model, nats a token
};

void PrintTo(const FormatCase& c, std::ostream* os) { *os << c.format << " " << c.method; }

class Formats : public ::testing::TestWithParam<FormatCase> {};

// The bound on the loss tells a working format from a broken one: weights that are wrong give several nats.
TEST_P(Formats, GiveAModelThatRuns) {
  const FormatCase& c = GetParam();
  const TempFolder folder;
  const auto summary = quantize(calibrated(c.format, c.method), folder.path() / "out");
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(summary->modules, 6 * 7);
  EXPECT_LE(summary->bits_per_weight, c.most_bits);
  EXPECT_GT(summary->rel_error, 0);
  static const double plain = golden_loss(kModel);
  EXPECT_LT(golden_loss(folder.path() / "out"), plain + c.most_loss);
}

INSTANTIATE_TEST_SUITE_P(All, Formats,
                         ::testing::Values(FormatCase{"fp8", "rtn", 8.1, 0.05}, FormatCase{"fp8", "auto", 8.1, 0.05},
                                           FormatCase{"int4", "rtn", 4.13, 0.3}, FormatCase{"int4", "clip", 4.13, 0.3},
                                           FormatCase{"int4", "gptq", 4.13, 0.3},
                                           FormatCase{"fireq", "gptq", 4.13, 0.3},
                                           FormatCase{"fireq-c4", "gptq", 4.13, 0.3},
                                           FormatCase{"sbvr", "gptq", 4.2, 0.3}));

// The folded steps leave the model as it was, up to the rounding of its bf16 weights.
TEST(Pipeline, PreparesForKvFormatsWithoutChangingTheModel) {
  const TempFolder folder;
  const double plain = golden_loss(kModel);
  for (const KvFormatId kv : {KvFormatId::kInt4Fireq, KvFormatId::kInt4Saw, KvFormatId::kFp8}) {
    SCOPED_TRACE(kv_format_name(kv));
    QuantizeOptions options = calibrated("bf16", "auto");
    options.kv = kv;
    const fs::path out = folder.path() / kv_format_name(kv);
    const auto summary = quantize(options, out);
    ASSERT_TRUE(summary) << summary.error().message;
    EXPECT_EQ(summary->kept, 6 * 7);
    const auto checkpoint = Checkpoint::open(out);
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const bool fp8 = kv == KvFormatId::kFp8;
    EXPECT_EQ(checkpoint->find("model.layers.3.self_attn.k_scale") != nullptr, fp8);
    EXPECT_EQ(checkpoint->find("model.layers.3.self_attn.k_channel_scale") != nullptr, kv == KvFormatId::kInt4Fireq);
    // Where the search finds that it helps, which depends on the last bits of sums: not the same layers on every CPU.
    int shifted = 0;
    for (int layer = 0; layer < 6; ++layer)
      shifted += checkpoint->find(fmt::format("model.layers.{}.self_attn.k_channel_offset", layer)) != nullptr;
    EXPECT_EQ(shifted > 0, kv == KvFormatId::kInt4Fireq) << shifted;
    // bf16 has 8 bits; 13 M weights' errors of 2^-9 each move the loss by far less than a format that is wrong.
    EXPECT_NEAR(golden_loss(out), plain, 0.01);
  }
}

std::vector<float> stored_floats(const Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
  const TensorEntry* entry = checkpoint.find(name);
  HEARTH_CHECK(entry != nullptr && entry->dtype == DType::kF32, "{}", name);
  EXPECT_EQ(entry->shape, shape) << name << " is " << to_string(entry->shape);
  std::vector<float> values(static_cast<size_t>(entry->shape.count()));
  EXPECT_TRUE(checkpoint.read(*entry, std::as_writable_bytes(std::span(values))));
  return values;
}

// The largest of the heads' scales is the tensor's; the others are less, and the cache reads them.
TEST(Pipeline, StoresFp8ScalesOfTensorsOrHeads) {
  const TempFolder folder;
  const double plain = golden_loss(kModel);
  for (const char* format : {"bf16", "fp8"}) {  // hearth's own form, and compressed-tensors
    SCOPED_TRACE(format);
    QuantizeOptions options = calibrated(format, format == std::string("fp8") ? "rtn" : "auto");
    options.kv = KvFormatId::kFp8;
    const fs::path tensor = folder.path() / format / "tensor", head = folder.path() / format / "head";
    ASSERT_TRUE(quantize(options, tensor));
    options.kv_scale_per_head = true;
    const auto summary = quantize(options, head);
    ASSERT_TRUE(summary) << summary.error().message;
    const auto by_tensor = Checkpoint::open(tensor), by_head = Checkpoint::open(head);
    ASSERT_TRUE(by_tensor && by_head);
    const nlohmann::json scheme = by_head->config()["quantization_config"].value("kv_cache_scheme", nlohmann::json());
    if (!scheme.is_null()) {
      EXPECT_EQ(scheme["strategy"], "attn_head");
    }
    bool differ = false;
    for (int64_t layer = 0; layer < 6; ++layer)
      for (const char* name : {"k_scale", "v_scale"}) {
        const std::string full = fmt::format("model.layers.{}.self_attn.{}", layer, name);
        const auto all = stored_floats(*by_tensor, full, Shape{1});
        const auto heads = stored_floats(*by_head, full, scheme.is_null() ? Shape{2} : Shape{2, 1, 1});
        EXPECT_EQ(std::max(heads[0], heads[1]), all[0]) << full;
        differ = differ || heads[0] != heads[1];
      }
    EXPECT_TRUE(differ);
    EXPECT_EQ(format == std::string("fp8"), !scheme.is_null());
    EXPECT_LT(golden_loss(head, KvFormatId::kFp8), plain + 0.05);
  }
  // A scale of 0 would divide the keys by it.
  const fs::path shard = folder.path() / "bf16/tensor/model-00005-of-00008.safetensors";
  const auto file = SafetensorsFile::open(shard);
  ASSERT_TRUE(file) << file.error().message;
  for (const TensorEntry& entry : file->tensors()) {
    if (!entry.name.ends_with("k_scale")) continue;
    std::fstream out(shard, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(entry.offset_bytes);
    out.write("\0\0\0\0", 4);
  }
  ThreadPool pool(1);
  const auto broken = Checkpoint::open(folder.path() / "bf16/tensor");
  ASSERT_TRUE(broken) << broken.error().message;
  const auto model = Model::load(*broken, cpu_ops(), {}, pool);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(model.error().message, ::testing::HasSubstr("k_scale' is 0 at 0; wanted positive scales"));

  QuantizeOptions wrong = options_to("fp8", "rtn");
  wrong.kv_scale_per_head = true;
  const auto refused = quantize(wrong, folder.path() / "wrong");
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, ::testing::HasSubstr("--kv-scales head is for --kv fp8"));
}

TEST(Pipeline, GivesTheSameBytesForAnyNumberOfThreads) {
  const TempFolder folder;
  QuantizeOptions options = calibrated("int4", "gptq");
  options.rules = *parse_format_rules("layers.2=bf16,layers.3=bf16,layers.4=bf16,layers.5=bf16");
  ASSERT_TRUE(quantize(options, folder.path() / "one", 1));
  ASSERT_TRUE(quantize(options, folder.path() / "three", 3));
  expect_same(folder.path() / "one", folder.path() / "three");
}

TEST(Pipeline, GoesOnWhereItWasCutOff) {
  const TempFolder folder;
  QuantizeOptions options = calibrated("int4", "gptq");
  options.awq = false;  // which would take most of the time
  options.rules = *parse_format_rules("layers.4=bf16,layers.5=bf16");
  ASSERT_TRUE(quantize(options, folder.path() / "whole"));
  // Cut off in the first layer, in the second, and in the third.
  const fs::path cut = folder.path() / "cut";
  for (const int linears : {3, 9, 10}) {
    std::atomic<bool> stop = false;
    int seen = 0;
    const QuantizeControl control{.progress = [&](int64_t, int64_t) { stop = ++seen == linears; }, .stop = &stop};
    const auto result = quantize(options, cut, 2, control);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::kCancelled);
    EXPECT_FALSE(Checkpoint::open(cut));
  }
  QuantizeOptions other = options;
  other.seed = 1;
  const auto refused = quantize(other, cut);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  const std::string state = read_bytes(cut / kQuantizeStateFile);
  nlohmann::ordered_json changed = nlohmann::ordered_json::parse(state);
  for (const nlohmann::json& line : {nlohmann::json(5), nlohmann::json{{"module", 1}}}) {
    changed["lines"][0] = line;
    std::ofstream(cut / kQuantizeStateFile) << changed.dump();
    EXPECT_EQ(quantize(options, cut).error().code, ErrorCode::kCorrupt) << line;
  }
  std::ofstream(cut / kQuantizeStateFile) << state;
  const auto summary = quantize(options, cut);
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_GT(summary->resumed_shards, 1);
  EXPECT_EQ(summary->modules, 4 * 7);
  expect_same(folder.path() / "whole", cut);
  EXPECT_EQ(quantize(options, cut).error().code, ErrorCode::kInvalidArgument) << "a finished folder is not empty";
}

TEST(Pipeline, KeepsModulesByRule) {
  const TempFolder folder;
  QuantizeOptions options = options_to("int4", "rtn");
  options.rules = *parse_format_rules("layers.0=fp8,layers.5.mlp.down_proj=bf16");
  const auto summary = quantize(options, folder.path() / "out");
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(summary->kept, 1);
  std::map<std::string, std::string> formats;
  std::ifstream report(folder.path() / "out/quantize_report.jsonl");
  for (std::string line; std::getline(report, line);) {
    const auto json = nlohmann::json::parse(line);
    formats[json["module"]] = json["format"];
  }
  EXPECT_EQ(formats.size(), 42u);
  EXPECT_EQ(formats["model.layers.0.mlp.up_proj"], "fp8");
  EXPECT_EQ(formats["model.layers.1.mlp.up_proj"], "int4");
  EXPECT_EQ(formats["model.layers.5.mlp.down_proj"], "bf16");
  EXPECT_LT(golden_loss(folder.path() / "out"), golden_loss(kModel) + 0.3);
}

// fable-13m's head is its embedding: a rule gives it weights of its own, and the embedding keeps its bits.
TEST(Pipeline, UntiesAHeadThatARuleQuantizes) {
  const TempFolder folder;
  const auto source = Checkpoint::open(kModel);
  ASSERT_TRUE(source && source->config()["tie_word_embeddings"] == true);
  for (const char* format : {"fp8", "sbvr"}) {  // compressed-tensors, and hearth's own form
    SCOPED_TRACE(format);
    const fs::path out = folder.path() / format;
    QuantizeOptions options = options_to("bf16", "rtn");
    options.rules = {{"lm_head", format}, {"layers.0", format}};
    options.lines = 16 * (format == std::string("sbvr"));
    const auto summary = quantize(options, out);
    ASSERT_TRUE(summary) << summary.error().message;
    EXPECT_EQ(summary->modules, 7);
    EXPECT_EQ(summary->kept, 5 * 7);
    EXPECT_GT(summary->lm_head_bits, 4);
    const auto written = Checkpoint::open(out);
    ASSERT_TRUE(written) << written.error().message;
    EXPECT_EQ(written->config()["tie_word_embeddings"], false);
    const TensorEntry* before = source->find("model.embed_tokens.weight");
    const TensorEntry* after = written->find("model.embed_tokens.weight");
    ASSERT_TRUE(before && after && before->size_bytes == after->size_bytes);
    std::vector<std::byte> old(static_cast<size_t>(before->size_bytes)), now(old.size());
    ASSERT_TRUE(source->read(*before, old) && written->read(*after, now));
    EXPECT_EQ(old, now);
    const double loss = golden_loss(out);
    EXPECT_NE(loss, golden_loss(kModel));
    EXPECT_LT(loss, golden_loss(kModel) + 0.3);
  }
}

// One small linear: the search takes seconds.
TEST(Pipeline, TakesTheEncoderOfSbvrsAuthors) {
  const TempFolder folder;
  QuantizeOptions options = options_to("bf16", "authors");
  options.rules = *parse_format_rules("layers.0.self_attn.k_proj=sbvr");
  const auto summary = quantize(options, folder.path() / "out");
  ASSERT_TRUE(summary) << summary.error().message;
  EXPECT_EQ(summary->modules, 1);
  // Their figure for normal weights is 7.9e-3 with more groups to learn lines from.
  EXPECT_LT(summary->rel_error, 9e-3);
  EXPECT_NEAR(golden_loss(folder.path() / "out"), golden_loss(kModel), 0.05);
}

// A copy of fable-13m with one value replaced.
void copy_with(const fs::path& dir, const std::string& tensor, int64_t element, uint16_t bits) {
  fs::copy(kModel, dir);
  fs::permissions(dir / "model.safetensors", fs::perms::owner_write, fs::perm_options::add);
  const auto file = SafetensorsFile::open(dir / "model.safetensors");
  HEARTH_CHECK(file.has_value(), "{}", file.error().message);
  for (const TensorEntry& entry : file->tensors()) {
    if (entry.name != tensor) continue;
    HEARTH_CHECK(entry.dtype == DType::kBf16, "{}", dtype_name(entry.dtype));
    std::fstream out(dir / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(entry.offset_bytes + 2 * element);
    out.write(reinterpret_cast<const char*>(&bits), sizeof bits);
    return;
  }
  HEARTH_CHECK(false, "no tensor {}", tensor);
}

// Without --awq the scale search goes where an input has outliers, and nowhere else.
TEST(Pipeline, SearchesScalesOfInputsWithOutliers) {
  const TempFolder folder;
  const fs::path outliers = folder.path() / "model";
  copy_with(outliers, "model.layers.0.input_layernorm.weight", 7, 0x4380);  // 256
  QuantizeOptions options = calibrated("int4", "gptq");
  options.rules = *parse_format_rules("layers.1=bf16,layers.2=bf16,layers.3=bf16,layers.4=bf16,layers.5=bf16");
  for (const bool plain : {true, false}) {
    const fs::path model = plain ? fs::path(kModel) : outliers;
    std::map<std::string, std::string> layer;
    for (const char* name : {"default", "all", "none"}) {
      options.awq = name == std::string("default") ? std::nullopt : std::optional(name == std::string("all"));
      const fs::path out = folder.path() / fmt::format("{}{}", name, plain);
      ASSERT_TRUE(quantize(options, out, 2, {}, model));
      layer[name] = read_bytes(out / "model-00002-of-00008.safetensors");
    }
    EXPECT_NE(layer["all"], layer["none"]);
    EXPECT_EQ(layer["default"] == layer["none"], plain);
  }
}

TEST(PipelineRefuses, ToGoOnWithOtherWeights) {
  const TempFolder folder;
  // In the middle of a tensor of 0.6 MB, which no sample of its ends would see.
  const fs::path changed = folder.path() / "changed", out = folder.path() / "out";
  copy_with(changed, "model.layers.5.mlp.down_proj.weight", 150000, 0x3C00);
  std::atomic<bool> stop = false;
  int seen = 0;
  const QuantizeControl control{.progress = [&](int64_t, int64_t) { stop = ++seen == 9; }, .stop = &stop};
  const QuantizeOptions options = options_to("fp8", "rtn");
  ASSERT_EQ(quantize(options, out, 2, control).error().code, ErrorCode::kCancelled);
  const auto refused = quantize(options, out, 2, {}, changed);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(refused.error().message, ::testing::HasSubstr("its model is"));
  EXPECT_TRUE(quantize(options, out, 3));
}

TEST(PipelineRefuses, WeightsThatAreNoNumbers) {
  const TempFolder folder;
  const std::string name = "model.layers.2.self_attn.o_proj.weight";
  copy_with(folder.path() / "model", name, 385, 0x7FC0);
  const auto result = quantize(options_to("fp8", "rtn"), folder.path() / "out", 2, {}, folder.path() / "model");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(result.error().message, ::testing::HasSubstr("'" + name + "' is nan at [1, 1]"));
  EXPECT_FALSE(Checkpoint::open(folder.path() / "out"));
}

TEST(PipelineRefuses, ActivationsThatAreNoNumbers) {
  const TempFolder folder;
  // A norm's weight of 3e38 is a number; what it makes is none after the next sum.
  copy_with(folder.path() / "model", "model.layers.1.input_layernorm.weight", 7, 0x7F61);
  const auto result = quantize(calibrated("int4", "gptq"), folder.path() / "out", 2, {}, folder.path() / "model");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message, ::testing::HasSubstr("layer 1: "));
}

TEST(PipelineRefuses, WhatItCannotDo) {
  const TempFolder folder;
  const auto code = [&](const Result<QuantizeSummary>& result) {
    return result ? ErrorCode::kInternal : result.error().code;
  };
  const auto uncalibrated = quantize(options_to("int4", "gptq"), folder.path() / "a");
  ASSERT_FALSE(uncalibrated);
  EXPECT_THAT(uncalibrated.error().message, ::testing::HasSubstr("--calibration FILE"));
  EXPECT_FALSE(fs::exists(folder.path() / "a"));

  QuantizeOptions empty = calibrated("int4", "gptq");
  empty.calibration->file = folder.put("empty.jsonl", "\n\n");
  EXPECT_EQ(code(quantize(empty, folder.path() / "b")), ErrorCode::kInvalidArgument);

  folder.put("c/mine.txt", "kept");
  EXPECT_EQ(code(quantize(options_to("fp8", "rtn"), folder.path() / "c")), ErrorCode::kInvalidArgument);
  EXPECT_EQ(read_bytes(folder.path() / "c/mine.txt"), "kept");

  ASSERT_TRUE(quantize(options_to("fp8", "rtn"), folder.path() / "d"));
  const auto twice = quantize(options_to("fp8", "rtn"), folder.path() / "e", 2, {}, folder.path() / "d");
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(twice.error().message, ::testing::HasSubstr("is quantized already"));
}

TEST(PipelineRefuses, RulesThatNameNothing) {
  const TempFolder folder;
  QuantizeOptions options = options_to("int4", "rtn");
  for (const char* pattern : {"layers.6", "lm_haed", "down", "model.norm"}) {
    options.rules = {{pattern, "bf16"}};
    const auto result = quantize(options, folder.path() / "a");
    ASSERT_FALSE(result) << pattern;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(result.error().message, ::testing::HasSubstr(fmt::format("rule {}=bf16 names no linear", pattern)));
    EXPECT_FALSE(fs::exists(folder.path() / "a"));
  }
  // An embedding that is the head as well is no linear, but its name is right.
  options.rules = {{"lm_head", "bf16"}, {"layers.*", "bf16"}, {"layers.5.*.v_proj", "fp8"}};
  EXPECT_TRUE(quantize(options, folder.path() / "b"));
}

// Stands for a full disk: no file may grow beyond a limit that a layer's shard needs.
TEST(PipelineRefuses, AFullDiskAndGoesOnAfterIt) {
  const TempFolder folder;
  const QuantizeOptions options = options_to("fp8", "rtn");
  ASSERT_TRUE(quantize(options, folder.path() / "whole"));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto result = quantize(options, folder.path() / "out");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kResourceExhausted);
  EXPECT_FALSE(Checkpoint::open(folder.path() / "out"));
  ASSERT_TRUE(quantize(options, folder.path() / "out"));
  expect_same(folder.path() / "whole", folder.path() / "out");
}

}  // namespace
}  // namespace hearth
