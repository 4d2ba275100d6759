// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/weights_sink.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "hearth/base/random.h"
#include "hearth/memory/fake_device_for_test.h"
#include "hearth/memory/host_buffer.h"
#include "hearth/model/model.h"

namespace hearth {
namespace {

std::vector<std::byte> pattern(size_t count, unsigned seed) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i * 2654435761u + seed) >> 13);
  return bytes;
}

// More than two pieces, so that each lane is used again.
TEST(WeightSink, BytesArriveWhereTheyWerePut) {
  constexpr int64_t kSize = int64_t{150} << 20, kFirst = 100;
  for (const Memory* memory : {&host_memory(), &testing::fake_device()}) {
    SCOPED_TRACE(std::string(memory->name()));
    auto sink = WeightSink::create(*memory, kSize);
    ASSERT_TRUE(sink) << sink.error().message;
    EXPECT_EQ(sink->in_place(), memory->is_host());
    const auto rest = pattern(kSize - kFirst, 1), first = pattern(kFirst, 2);
    ASSERT_TRUE(sink->put(kFirst, rest));
    const auto piece = sink->open(0, kFirst);
    ASSERT_TRUE(piece);
    std::ranges::copy(first, piece->begin());
    ASSERT_TRUE(sink->close());
    const std::byte* const address = sink->address(0);
    const auto buffer = sink->finish();
    ASSERT_TRUE(buffer) << buffer.error().message;
    EXPECT_EQ(buffer->data(), address);
    EXPECT_EQ(buffer->size_bytes(), kSize);
    EXPECT_TRUE(std::ranges::equal(first, std::span(buffer->data(), kFirst)));
    EXPECT_TRUE(std::ranges::equal(rest, std::span(buffer->data() + kFirst, rest.size())));
  }
}

TEST(WeightSink, NothingIsLegal) {
  auto sink = WeightSink::create(testing::fake_device(), 0);
  ASSERT_TRUE(sink) << sink.error().message;
  EXPECT_TRUE(sink->put(0, {}));
  EXPECT_EQ(sink->finish()->size_bytes(), 0);
}

TEST(WeightSink, ADeviceThatIsFullSaysSo) {
  const auto sink = WeightSink::create(testing::fake_device(), int64_t{1} << 60);
  ASSERT_FALSE(sink);
  EXPECT_EQ(sink.error().code, ErrorCode::kResourceExhausted);
  EXPECT_TRUE(sink.error().message.starts_with("weights: ")) << sink.error().message;
}

// Every plain and quantized weight of two models, byte by byte.
void expect_same_linear(const Linear& wanted, const Linear& found) {
  ASSERT_EQ(wanted.parts.size(), found.parts.size());
  for (size_t i = 0; i < wanted.parts.size(); ++i) {
    const LinearWeight &a = wanted.parts[i], &b = found.parts[i];
    for (const auto view : {&LinearWeight::codes, &LinearWeight::scales, &LinearWeight::zeros, &LinearWeight::lines,
                            &LinearWeight::line_scales, &LinearWeight::line_index, &LinearWeight::k_order,
                            &LinearWeight::act_scale, &LinearWeight::bias}) {
      ASSERT_EQ(static_cast<bool>(a.*view), static_cast<bool>(b.*view));
      if (!(a.*view)) continue;
      ASSERT_EQ((a.*view).size_bytes(), (b.*view).size_bytes());
      EXPECT_EQ(std::memcmp((a.*view).data, (b.*view).data, static_cast<size_t>((a.*view).size_bytes())), 0);
    }
  }
}
void expect_same_weights(const ModelWeights& wanted, const ModelWeights& found) {
  EXPECT_EQ(wanted.memory.size_bytes(), found.memory.size_bytes());
  const auto same = [](ConstTensorView a, ConstTensorView b) {
    return a.size_bytes() == b.size_bytes() &&
           (!a || std::memcmp(a.data, b.data, static_cast<size_t>(a.size_bytes())) == 0);
  };
  EXPECT_TRUE(same(wanted.embedding, found.embedding));
  EXPECT_TRUE(same(wanted.inv_freq, found.inv_freq));
  EXPECT_TRUE(same(wanted.final_norm, found.final_norm));
  expect_same_linear(wanted.lm_head, found.lm_head);
  ASSERT_EQ(wanted.layers.size(), found.layers.size());
  for (size_t i = 0; i < wanted.layers.size(); ++i) {
    SCOPED_TRACE(i);
    const LayerWeights &a = wanted.layers[i], &b = found.layers[i];
    EXPECT_TRUE(same(a.input_norm, b.input_norm));
    EXPECT_TRUE(same(a.post_attention_norm, b.post_attention_norm));
    expect_same_linear(a.qkv, b.qkv);
    expect_same_linear(a.o, b.o);
    expect_same_linear(std::get<DenseFfn>(a.ffn).gate_up, std::get<DenseFfn>(b.ffn).gate_up);
    expect_same_linear(std::get<DenseFfn>(a.ffn).down, std::get<DenseFfn>(b.ffn).down);
  }
}

ModelConfig tiny_config() {
  return parse_model_config(nlohmann::json{{"architectures", {"LlamaForCausalLM"}},
                                           {"hidden_size", 64},
                                           {"intermediate_size", 96},
                                           {"num_hidden_layers", 2},
                                           {"num_attention_heads", 4},
                                           {"num_key_value_heads", 2},
                                           {"max_position_embeddings", 64},
                                           {"vocab_size", 300}})
      .value();
}

// Pieces of some rows, of one row, and of less than a row.
TEST(WeightSink, WeightsOnADeviceAreThoseOfTheHost) {
  const ModelConfig config = tiny_config();
  ThreadPool pool(2);
  for (const DType dtype : {DType::kBf16, DType::kF32}) {
    DummySource source(config, dtype, 7);
    const auto wanted = load_weights(source, config, {.activation = DType::kBf16}, pool);
    ASSERT_TRUE(wanted) << wanted.error().message;
    for (const int64_t piece_bytes : {1000, 128, 100}) {
      SCOPED_TRACE(piece_bytes);
      const auto found = load_weights(
          source, config, {.activation = DType::kBf16, .memory = &testing::fake_device(), .piece_bytes = piece_bytes},
          pool);
      ASSERT_TRUE(found) << found.error().message;
      expect_same_weights(*wanted, *found);
    }
  }
}

// Dummy weights whose projections are four bitvectors each, of random bits.
class BitvectorSource final : public WeightSource {
 public:
  explicit BitvectorSource(const ModelConfig& config) : plain_(config, DType::kBf16, 7) {}
  const TensorEntry* find(const std::string& name, const Shape& wanted) override { return plain_.find(name, wanted); }
  Status read_part(const TensorEntry& entry, int64_t begin, std::span<std::byte> dst) const override {
    return plain_.read_part(entry, begin, dst);
  }
  Result<std::optional<WeightFormat>> quantized_format(const std::string& module, int64_t, int64_t) override {
    return module.ends_with("_proj") ? std::optional(kFormat) : std::nullopt;
  }
  Result<QuantizedMatrix> read_quantized(const std::string& module, int64_t n, int64_t k) const override {
    Random random(module.size(), static_cast<uint64_t>(n * k));
    QuantizedMatrix matrix;
    matrix.format = kFormat;
    matrix.n = n, matrix.k = k;
    for (int64_t i = 0; i < n * matrix.row_bytes(); ++i)
      matrix.codes.push_back(static_cast<uint8_t>(random.next_u32()));
    for (int64_t i = 0; i < n * k / kFormat.group_k; ++i) matrix.scales.push_back(random.below(2) ? 0.5f : 0.25f);
    matrix.lines = {-8, 4, 2, 1};
    matrix.line_scales = {1};
    matrix.line_index.assign(matrix.scales.size(), 0);
    return matrix;
  }
  std::string name() const override { return "bitvectors"; }

 private:
  static constexpr WeightFormat kFormat{.code = WeightCode::kBitvectors,
                                        .scale_layout = ScaleLayout::kGroup,
                                        .scale_dtype = DType::kF16,
                                        .group_k = 32,
                                        .bitvectors = 4,
                                        .lines = 1,
                                        .integer_lines = true};
  DummySource plain_;
};

TEST(WeightSink, QuantizedWeightsOnADeviceAreThoseOfTheHost) {
  const ModelConfig config = tiny_config();
  ThreadPool pool(2);
  BitvectorSource source(config);
  const auto wanted = load_weights(source, config, {}, pool);
  ASSERT_TRUE(wanted) << wanted.error().message;
  EXPECT_TRUE(wanted->layers[1].o.parts[0].line_index);
  const auto found = load_weights(source, config, {.memory = &testing::fake_device(), .piece_bytes = 1000}, pool);
  ASSERT_TRUE(found) << found.error().message;
  expect_same_weights(*wanted, *found);
}

}  // namespace
}  // namespace hearth
