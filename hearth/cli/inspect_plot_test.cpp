// SPDX-License-Identifier: Apache-2.0
// Histograms against counts made by hand, and the picture's form.
#include "hearth/cli/inspect_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "hearth/checkpoint/test_util.h"

namespace hearth {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;

int64_t total(const WeightHistogram& h) { return std::accumulate(h.counts.begin(), h.counts.end(), int64_t{0}); }

int64_t count_at(const WeightHistogram& h, double value) {
  const auto bins = static_cast<double>(h.counts.size());
  return h.counts[static_cast<size_t>((value / h.range + 1) / 2 * bins)];
}

TEST(WeightHistogram, CountsCodesWhateverTheScales) {
  QuantizedMatrix m;
  m.format = {.code = WeightCode::kI4SignMagnitude,
              .scale_layout = ScaleLayout::kGroup,
              .scale_dtype = DType::kF16,
              .group_k = 4};
  m.n = 2;
  m.k = 8;
  m.scales = {1, 0.5f, 0.25f, 2};
  m.codes.resize(8);
  // Row 0: 0, 1, 2, 7 and -1, -7, 3, 3; row 1: all -2.
  const uint8_t first[] = {0, 1, 2, 7, 9, 15, 3, 3};
  for (int j = 0; j < 8; ++j) put_nibble(std::span(m.codes).first(4), j, first[j]);
  for (int j = 0; j < 8; ++j) put_nibble(std::span(m.codes).subspan(4), j, 10);
  ASSERT_TRUE(m.validate());
  const WeightHistogram h = matrix_histogram(m, "name");
  EXPECT_EQ(total(h), 16);
  EXPECT_EQ(count_at(h, -2), 8);
  EXPECT_EQ(count_at(h, 3), 2);
  for (const double value : {-7, -1, 0, 1, 2, 7}) EXPECT_EQ(count_at(h, value), 1) << value;
  EXPECT_EQ(h.levels.size(), 16u);
  EXPECT_GT(h.range, 7);
  EXPECT_LT(h.range, 7.5);
}

TEST(WeightHistogram, TakesLinesByTheirLargestSum) {
  QuantizedMatrix m;
  m.format = {.code = WeightCode::kBitvectors, .group_k = 4, .bitvectors = 2, .lines = 2, .integer_lines = true};
  m.n = 1;
  m.k = 8;
  m.lines = {-3, 1, 10, 20};
  m.line_scales = {1, 2};
  m.line_index = {1, 1};
  m.codes.resize(4);
  // Bit 1 takes the first coefficient: 0, 20, 10, 30 by 30, twice.
  for (int j = 0; j < 8; ++j) put_nibble(m.codes, j, static_cast<uint8_t>(j % 4));
  ASSERT_TRUE(m.validate());
  const WeightHistogram h = matrix_histogram(m, "name");
  EXPECT_EQ(h.range, 1);
  EXPECT_EQ(count_at(h, 0), 2);
  EXPECT_EQ(count_at(h, 1.0 / 3), 2);
  EXPECT_EQ(count_at(h, 2.0 / 3), 2);
  EXPECT_EQ(h.counts.back(), 2);
  ASSERT_EQ(h.levels.size(), 4u);
  EXPECT_DOUBLE_EQ(h.levels[1], 20.0 / 30);
  EXPECT_DOUBLE_EQ(h.levels[2], 10.0 / 30);
}

TEST(WeightHistogram, OfAPlainCheckpoint) {
  const auto checkpoint = Checkpoint::open("models/fable-13m");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const ModelConfig config = *parse_model_config(checkpoint->config());
  const auto h = weight_histogram(*checkpoint, config, "model.layers.0.mlp.down_proj");
  ASSERT_TRUE(h) << h.error().message;
  EXPECT_EQ(total(*h), 384 * 1024);
  // Each group of 128 has its largest weight at 1 or -1.
  EXPECT_GE(count_at(*h, 1) + count_at(*h, -1), 384 * 8);
  EXPECT_EQ(h->levels.size(), 16u);
  EXPECT_THAT(weight_histogram(*checkpoint, config, "model.norm").error().message, HasSubstr("model.norm"));
  EXPECT_THAT(weight_histogram(*checkpoint, config, "model.layers.6.mlp.up_proj").error().message,
              HasSubstr("no model.layers.6.mlp.up_proj.weight"));
}

TEST(Plot, WritesAPicture) {
  const testing_util::TempFolder dir;
  const auto checkpoint = Checkpoint::open("models/fable-13m");
  ASSERT_TRUE(checkpoint);
  const ModelConfig config = *parse_model_config(checkpoint->config());
  const auto file = dir.path() / "weights.svg";
  ASSERT_TRUE(plot_weights(*checkpoint, config, {}, file));
  const std::string svg = testing_util::read_bytes(file);
  EXPECT_TRUE(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1140\" height=\"460\""));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  for (const char* title : {"model.layers.0.self_attn.q_proj", "model.layers.5.mlp.down_proj"})
    EXPECT_THAT(svg, HasSubstr(title));
  ASSERT_TRUE(plot_weights(*checkpoint, config, {"model.layers.1.mlp.up_proj.weight"}, file));
  EXPECT_THAT(testing_util::read_bytes(file), HasSubstr("width=\"380\" height=\"230\""));
  EXPECT_THAT(plot_weights(*checkpoint, config, {}, dir.path() / "no" / "file.svg").error().message,
              HasSubstr("file.svg: No such file or directory"));
  EXPECT_THAT(plot_weights(*checkpoint, config, {}, dir.path() / "weights.png").error().message, HasSubstr(".svg"));
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "weights.png"));
  const WeightHistogram odd{.title = "a<b>&", .subtitle = "x\n", .range = 1, .counts = {1, 0, 2}, .levels = {0.5}};
  EXPECT_THAT(histograms_svg({&odd, 1}), HasSubstr("a&lt;b&gt;&amp;"));
}

}  // namespace
}  // namespace hearth
