// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/model.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <fstream>
#include <thread>

#include "hearth/memory/fake_device_for_test.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/architecture.h"
#include "hearth/model/golden_for_test.h"

namespace hearth {
namespace {

// Two ranks in two threads. Sums in rank order, so both get the same bits.
class ThreadComm final : public Comm {
 public:
  struct Shared {
    explicit Shared(int size) : barrier(size), data(static_cast<size_t>(size)) {}
    std::barrier<> barrier;
    std::vector<TensorView> data;
  };
  ThreadComm(Shared& shared, int rank) : shared_(shared), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(shared_.data.size()); }
  Status all_reduce_sum(TensorView data) override {
    shared_.data[static_cast<size_t>(rank_)] = data;
    shared_.barrier.arrive_and_wait();
    std::vector<float> sum(static_cast<size_t>(data.shape.count()));
    for (const TensorView& part : shared_.data)
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<const float*>(part.data)[i];
    shared_.barrier.arrive_and_wait();
    std::memcpy(data.data, sum.data(), sum.size() * sizeof(float));
    return {};
  }
  Status all_gather(ConstTensorView, TensorView) override { return internal_error("not called"); }
  Status broadcast(TensorView, int) override { return internal_error("not called"); }

 private:
  Shared& shared_;
  const int rank_;
};

// Splitting a model over two ranks gives the logits of one rank, up to the order of the sums.
TEST(Model, TwoShardsAddUpToTheWhole) {
  for (const char* fixture : {"llama_bias", "qwen3"}) {
    SCOPED_TRACE(fixture);
    const std::filesystem::path dir = std::filesystem::path("tests/fixtures") / fixture;
    const auto golden = testing::read_golden(dir).back();
    ThreadComm::Shared shared(2);
    std::vector<testing::Rows> results(2);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 2; ++rank) {
      ranks.emplace_back([&, rank] {
        ThreadPool pool(1);
        const auto model = testing::load_model(dir, pool, {.shard = {.rank = rank, .size = 2}});
        const int64_t tokens = static_cast<int64_t>(golden.ids.size());
        auto buffers = ForwardBuffers::create(
            *model, {.max_tokens = tokens, .max_logit_rows = tokens, .max_context = tokens}, pool);
        const auto& c = model->config();
        KvView kv;
        kv.layout = *KvLayout::make(KvFormatId::kF32, c.layers, model->local_kv_heads(), c.head_dim, tokens);
        auto memory = HostBuffer::allocate(kv.layout.block_bytes());
        kv.base = memory->data();
        std::vector<int32_t> rows(golden.ids.size());
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
        const int32_t starts[] = {0, static_cast<int32_t>(tokens)}, context[] = {static_cast<int32_t>(tokens)};
        const int64_t blocks[] = {0};
        const StepBatch batch{.tokens = golden.ids,
                              .positions = rows,
                              .query_start = starts,
                              .context_len = context,
                              .block_table = blocks,
                              .block_table_stride = 1,
                              .logit_rows = rows};
        ThreadComm comm(shared, rank);
        const auto logits = forward(*model, batch, kv, comm, *buffers);
        HEARTH_CHECK(logits.has_value(), "{}", logits.error().message);
        results[static_cast<size_t>(rank)] = testing::copy_rows(*logits);
      });
    }
    for (std::thread& rank : ranks) rank.join();
    EXPECT_EQ(results[0], results[1]);
    for (const auto& [position, wanted] : golden.logits)
      for (size_t v = 0; v < wanted.size(); ++v)
        EXPECT_NEAR(results[0][static_cast<size_t>(position)][v], wanted[v], 1e-4);
  }
}

ModelConfig tiny_config() {
  ModelConfig c;
  c.architecture = find_architecture("LlamaForCausalLM");
  c.vocab_size = 50;
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.max_positions = 64;
  c.windows = {0, 0};
  return c;
}

TEST(Model, DummyWeightsDependOnTheSeedAlone) {
  ThreadPool one(1), three(3);
  const auto a = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kBf16, 1, one);
  const auto b = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kBf16, 1, three);
  const auto c = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kBf16, 2, one);
  ASSERT_TRUE(a && b && c);
  const auto& la = (*a)->weights().layers[1].qkv.parts[0].codes;
  const auto& lb = (*b)->weights().layers[1].qkv.parts[0].codes;
  const auto& lc = (*c)->weights().layers[1].qkv.parts[0].codes;
  EXPECT_EQ(std::memcmp(la.data, lb.data, static_cast<size_t>(la.size_bytes())), 0);
  EXPECT_NE(std::memcmp(la.data, lc.data, static_cast<size_t>(la.size_bytes())), 0);
  EXPECT_EQ((*a)->weights().memory.size_bytes(), (*b)->weights().memory.size_bytes());
}

TEST(Model, LoadNamesWhatTheCheckpointLacks) {
  ThreadPool pool(1);
  auto checkpoint = Checkpoint::open("tests/fixtures/qwen3");
  ASSERT_TRUE(checkpoint);
  const auto wrong_shard = Model::load(*checkpoint, cpu_ops(), {.shard = {.rank = 0, .size = 64}}, pool);
  ASSERT_FALSE(wrong_shard);
  EXPECT_NE(wrong_shard.error().message.find("64 ranks do not divide"), std::string::npos)
      << wrong_shard.error().message;
  const auto wrong_type = Model::load(*checkpoint, cpu_ops(), {.activation = DType::kF16}, pool);
  EXPECT_EQ(wrong_type.error().code, ErrorCode::kInvalidArgument);

  OpTable without = cpu_ops();
  without.find_linear = [](const WeightFormat&, DType) -> const LinearOp* { return nullptr; };
  const auto no_op = Model::load(*checkpoint, without, {}, pool);
  ASSERT_FALSE(no_op);
  EXPECT_EQ(no_op.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(no_op.error().message.find(
                "layer 0 qkv_proj: the cpu backend has no linear op for bf16 weights and f32 activations"),
            std::string::npos)
      << no_op.error().message;
}

// A checkpoint that holds more than the configuration describes would run as another model, silently.
TEST(Model, RefusesTensorsThatItHasNoPlaceFor) {
  const std::filesystem::path dir =
      std::filesystem::path(::testing::TempDir()) / fmt::format("hearth-extra-{}", getpid());
  std::filesystem::create_directories(dir);
  std::filesystem::copy_file("tests/fixtures/llama3/model.safetensors", dir / "model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  nlohmann::json config = *read_json_object("tests/fixtures/llama3/config.json");
  config["num_hidden_layers"] = 1;
  std::ofstream(dir / "config.json") << config;
  ThreadPool pool(1);
  auto checkpoint = Checkpoint::open(dir);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto model = Model::load(*checkpoint, cpu_ops(), {}, pool);
  std::filesystem::remove_all(dir);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(model.error().message.find("tensor 'model.layers.1."), std::string::npos) << model.error().message;
}

// A copy of a fixture with one element of one tensor overwritten by `bits`, loaded.
Result<std::shared_ptr<const Model>> load_with_element(const std::string& fixture, const std::string& tensor,
                                                       int64_t index, uint32_t bits, const ModelOptions& options = {}) {
  namespace fs = std::filesystem;
  const fs::path dir = fs::path(::testing::TempDir()) / fmt::format("hearth-element-{}", getpid());
  fs::create_directories(dir);
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy_file("tests/fixtures/" + fixture + "/" + name, dir / name, fs::copy_options::overwrite_existing);
  HEARTH_TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(dir));
  const TensorEntry* const entry = checkpoint.find(tensor);
  HEARTH_CHECK(entry != nullptr, "no {} in {}", tensor, fixture);
  const int64_t width = dtype_bytes(entry->dtype, 1);
  std::fstream file(dir / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(entry->offset_bytes + index * width);
  file.write(reinterpret_cast<const char*>(&bits), width);
  file.close();
  ThreadPool pool(3);
  auto model = Model::load(checkpoint, cpu_ops(), options, pool);
  // On its way to a device the same is found.
  OpTable ops = cpu_ops();
  ops.memory = hearth::testing::fake_device;
  const auto on_device = Model::load(checkpoint, ops, options, pool);
  EXPECT_EQ(on_device.has_value(), model.has_value());
  if (!on_device && !model) {
    EXPECT_EQ(on_device.error().message, model.error().message);
  }
  fs::remove_all(dir);
  return model;
}

// One number that is none makes every token of the model none: the file is broken, and is so at load.
TEST(Model, NamesTheTensorThatHoldsNoNumber) {
  constexpr uint32_t kNanBf16 = 0x7FC1, kInfBf16 = 0xFF80, kNanF32 = 0xFFC00000, kMaxBf16 = 0x7F7F;
  struct Case {
    const char* fixture;
    const char* tensor;
    int64_t index;
    uint32_t bits;
    const char* wanted;
  };
  const Case cases[] = {
      {"qwen25", "model.embed_tokens.weight", 56 * 112 + 55, kNanBf16, "nan at [112, 55]"},
      {"qwen25", "lm_head.weight", 0, kNanBf16, "nan at [0, 0]"},
      {"qwen25", "model.layers.0.input_layernorm.weight", 55, kNanBf16, "nan at [55]"},
      {"qwen25", "model.layers.0.self_attn.k_proj.bias", 3, kInfBf16, "-inf at [3]"},
      {"qwen25", "model.layers.0.self_attn.v_proj.weight", 57, kInfBf16, "-inf at [1, 1]"},
      {"qwen25", "model.layers.1.mlp.up_proj.weight", 0, kNanBf16, "nan at [0, 0]"},
      {"qwen25", "model.norm.weight", 0, kInfBf16, "-inf at [0]"},
      {"qwen3", "model.layers.1.self_attn.q_norm.weight", 15, kNanBf16, "nan at [15]"},
      {"llama_bias", "model.layers.0.mlp.down_proj.bias", 31, kNanF32, "nan at [31]"},
      {"llama_bias", "model.layers.1.mlp.down_proj.weight", 56 * 31 + 2, kNanF32, "nan at [31, 2]"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.tensor);
    const auto model = load_with_element(c.fixture, c.tensor, c.index, c.bits);
    ASSERT_FALSE(model);
    EXPECT_EQ(model.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(model.error().message.find(fmt::format("tensor '{}' is", c.tensor)), std::string::npos)
        << model.error().message;
    EXPECT_NE(model.error().message.find(c.wanted), std::string::npos) << model.error().message;
  }
  // The largest number is one, unless the type that is wanted does not have it.
  EXPECT_TRUE(load_with_element("qwen25", "model.norm.weight", 0, kMaxBf16));
  const char* const down = "model.layers.0.mlp.down_proj.weight";
  EXPECT_TRUE(load_with_element("llama_bias", down, 0, 0x7F7FFFFF));
  const auto rounded = load_with_element("llama_bias", down, 0, 0x7F7FFFFF, {.activation = DType::kBf16});
  ASSERT_FALSE(rounded);
  EXPECT_NE(rounded.error().message.find("is inf at [0, 0] as bf16; wanted finite numbers"), std::string::npos)
      << rounded.error().message;
}

TEST(Runner, CountsItsPoolWithoutOverflow) {
  ThreadPool pool(1);
  auto model = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kF32, 1, pool);
  ASSERT_TRUE(model);
  // A token is 2 * 2 * 2 * 8 floats: 2^60 of them are 2^68 bytes, which are 0 in 64 bits.
  const auto runner = Runner::create(*model, {.max_context = int64_t{1} << 60}, pool);
  ASSERT_FALSE(runner);
  EXPECT_EQ(runner.error().code, ErrorCode::kResourceExhausted) << runner.error().message;
  EXPECT_NE(runner.error().message.find("more bytes than can be counted"), std::string::npos) << runner.error().message;
}

TEST(Runner, RefusesWhatDoesNotFitAndStaysUsable) {
  ThreadPool pool(1);
  auto model = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kF32, 1, pool);
  ASSERT_TRUE(model);
  auto runner = Runner::create(*model, {.max_context = 10, .chunk_tokens = 4}, pool);
  ASSERT_TRUE(runner);
  const std::vector<int32_t> ids(11, 3);
  const auto too_long = runner->feed(0, ids);
  ASSERT_FALSE(too_long);
  EXPECT_EQ(too_long.error().message, "context of 11 tokens exceeds the maximum of 10");
  EXPECT_EQ(runner->context(0), 0);
  const std::vector<int32_t> outside{3, 50};
  EXPECT_EQ(runner->feed(0, outside).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(runner->context(0), 0);
  ASSERT_TRUE(runner->feed(0, std::span(ids).first(10)));
  EXPECT_EQ(runner->context(0), 10);
}

TEST(Runner, SamplesTheStepsOwnLogits) {
  ThreadPool pool(1);
  auto model = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kF32, 1, pool);
  auto runner = Runner::create(*model, {.max_sequences = 2, .max_context = 8, .samples = true}, pool);
  ASSERT_TRUE(runner);
  const std::vector<int32_t> ids{1, 2, 3, 4};
  const SlotTokens feeds[] = {{.slot = 1, .tokens = std::span(ids).first(3)}, {.slot = 0, .tokens = ids}};
  const testing::Rows logits = testing::copy_rows(*runner->step(feeds));
  runner->cut(0, 0);
  runner->cut(1, 0);
  const std::vector<SampleRow> rows(2, {.params = {.temperature = 0}});
  std::vector<SampleResult> results(2);
  ASSERT_TRUE(runner->step_and_sample(feeds, rows, results));
  for (size_t r = 0; r < 2; ++r) EXPECT_EQ(results[r].token, std::ranges::max_element(logits[r]) - logits[r].begin());
  EXPECT_EQ(runner->context(0), 4);
  EXPECT_EQ(runner->context(1), 3);

  // Rows that cannot be sampled: their tokens were fed all the same.
  std::vector<SampleRow> none(2, {.params = {.temperature = 0}});
  const uint32_t nothing[2] = {0, 0};
  none[1].allowed = nothing;
  EXPECT_FALSE(runner->step_and_sample(feeds, none, results));
  EXPECT_EQ(results[1].outcome, SampleOutcome::kNoToken);
  EXPECT_EQ(runner->context(0), 8);
}

TEST(Runner, CutForgets) {
  ThreadPool pool(1);
  auto model = Model::dummy(tiny_config(), cpu_ops(), {}, DType::kF32, 1, pool);
  auto runner = Runner::create(*model, {.block_tokens = 4}, pool);
  const std::vector<int32_t> a{1, 2, 3, 4, 5, 6}, b{1, 2, 3, 9, 9, 9};
  const testing::Rows wanted = testing::copy_rows(*runner->feed(0, a));
  runner->cut(0, 0);
  ASSERT_TRUE(runner->feed(0, b));
  runner->cut(0, 3);
  EXPECT_EQ(testing::copy_rows(*runner->feed(0, std::span<const int32_t>(a).subspan(3))), wanted);
}

}  // namespace
}  // namespace hearth
