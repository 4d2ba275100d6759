// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/inspect_plot.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <map>

#include "hearth/checkpoint/convert.h"
#include "hearth/checkpoint/file.h"
#include "hearth/checkpoint/quantization.h"

namespace hearth {
namespace {

constexpr size_t kBins = 121;  // odd: zero is the middle of a bin
constexpr int64_t kPlainGroup = 128;
constexpr double kE4m3Max = 448;

struct ModuleShape {
  int64_t n = 0, k = 0;
};

Result<ModuleShape> shape_of(const ModelConfig& c, std::string_view module) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const std::pair<std::string_view, ModuleShape> shapes[] = {
      {".q_proj", {q, c.hidden_size}},
      {".k_proj", {kv, c.hidden_size}},
      {".v_proj", {kv, c.hidden_size}},
      {".o_proj", {c.hidden_size, q}},
      {".gate_proj", {c.intermediate_size, c.hidden_size}},
      {".up_proj", {c.intermediate_size, c.hidden_size}},
      {".down_proj", {c.hidden_size, c.intermediate_size}},
      {"lm_head", {c.vocab_size, c.hidden_size}},
  };
  for (const auto& [suffix, shape] : shapes)
    if (module.ends_with(suffix)) return shape;
  return not_found("--tensor: {} is no linear of this model; wanted one such as model.layers.0.mlp.down_proj", module);
}

// Counts a value of [-range, range]; what lies beyond goes to the outer bins.
void count(WeightHistogram& histogram, double value) {
  const double place = (value / histogram.range + 1) / 2 * static_cast<double>(kBins);
  const auto bin = static_cast<int64_t>(std::floor(place));
  ++histogram.counts[static_cast<size_t>(std::clamp<int64_t>(bin, 0, kBins - 1))];
}

Result<WeightHistogram> plain_histogram(const Checkpoint& checkpoint, const std::string& module) {
  const TensorEntry* const entry = checkpoint.find(module + ".weight");
  if (entry == nullptr) return not_found("--tensor: the checkpoint has no {}.weight", module);
  if (entry->shape.rank() != 2) return corrupt("{}: shape {}; wanted a matrix", entry->name, to_string(entry->shape));
  const int64_t n = entry->shape[0], k = entry->shape[1];
  std::vector<std::byte> bytes(static_cast<size_t>(entry->size_bytes));
  HEARTH_TRY(checkpoint.read(*entry, bytes));
  std::vector<float> values(static_cast<size_t>(n * k));
  HEARTH_TRY(convert_floats(entry->dtype, bytes, DType::kF32, std::as_writable_bytes(std::span(values))));
  WeightHistogram h{.title = module,
                    .subtitle = fmt::format("{} x {}, {}, by the largest of {}; lines: int4", n, k,
                                            dtype_name(entry->dtype), kPlainGroup),
                    .range = 1.1,
                    .counts = std::vector<int64_t>(kBins),
                    .levels = {}};
  for (int q = -8; q <= 7; ++q) h.levels.push_back(q / 7.5);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t begin = 0; begin < k; begin += kPlainGroup) {
      const auto group = std::span(values).subspan(static_cast<size_t>(row * k + begin),
                                                   static_cast<size_t>(std::min(kPlainGroup, k - begin)));
      float largest = 0;
      for (const float w : group) largest = std::max(largest, std::abs(w));
      for (const float w : group) count(h, largest > 0 ? static_cast<double>(w / largest) : 0);
    }
  }
  return h;
}

// Largest sum that each line can make, its scale included: what bitvector weights are divided by.
std::vector<double> line_ranges(const QuantizedMatrix& m) {
  const auto width = static_cast<size_t>(m.format.bitvectors);
  std::vector<double> ranges;
  for (size_t line = 0; line * width < m.lines.size(); ++line) {
    double up = 0, down = 0;
    for (size_t s = 0; s < width; ++s) {
      const auto value = static_cast<double>(m.lines[line * width + s]);
      (value > 0 ? up : down) += value;
    }
    const double scale = m.line_scales.empty() ? 1 : static_cast<double>(m.line_scales[line]);
    ranges.push_back(std::abs(scale) * std::max(up, -down));
  }
  return ranges;
}

// What weight (row, column) is divided by; `column` in the stored order.
double scale_at(const QuantizedMatrix& m, std::span<const double> ranges, int64_t row, int64_t column) {
  const WeightFormat& f = m.format;
  const int64_t group = f.group_k > 0 ? column / f.group_k : 0;
  const int64_t groups = f.group_k > 0 ? (m.k + f.group_k - 1) / f.group_k : 1;
  if (f.code == WeightCode::kBitvectors) return ranges[m.line_index[static_cast<size_t>(row * groups + group)]];
  int64_t index = 0;
  switch (f.scale_layout) {
    case ScaleLayout::kNone: return 1;
    case ScaleLayout::kTensor: index = 0; break;
    case ScaleLayout::kRow: index = row; break;
    case ScaleLayout::kGroup: index = row * groups + group; break;
    case ScaleLayout::kBlock: index = row / f.block_n * groups + group; break;
  }
  return static_cast<double>(m.scales[static_cast<size_t>(index)]);
}

// Sums of the line that most groups have, by its range.
std::vector<double> line_levels(const QuantizedMatrix& m, std::span<const double> ranges) {
  std::map<uint16_t, int64_t> uses;
  for (const uint16_t index : m.line_index) ++uses[index];
  const auto most =
      std::max_element(uses.begin(), uses.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto width = static_cast<size_t>(m.format.bitvectors);
  if (most == uses.end() || width > 4 || ranges[most->first] == 0) return {};
  std::vector<float> sums(size_t{1} << width);
  subset_sums(std::span(m.lines).subspan(most->first * width, width), sums);
  const double scale = m.line_scales.empty() ? 1 : static_cast<double>(m.line_scales[most->first]);
  std::vector<double> levels;
  for (const float sum : sums) levels.push_back(static_cast<double>(sum) * scale / ranges[most->first]);
  return levels;
}

// Range and levels of the code.
void set_levels(const QuantizedMatrix& m, std::span<const double> ranges, WeightHistogram& h) {
  switch (m.format.code) {
    case WeightCode::kE4m3: h.range = kE4m3Max; return;
    case WeightCode::kBitvectors:
      h.range = 1;
      h.levels = line_levels(m, ranges);
      return;
    default: break;
  }
  const auto values = code_values(m.format.code);
  const double zero = m.format.code == WeightCode::kU4 && !m.format.has_zero_point ? 8 : 0;
  for (const float value : values) h.levels.push_back(static_cast<double>(value) - zero);
  // With zero points of their own, groups reach from -15 to 15.
  if (m.format.has_zero_point)
    for (int q = -15; q < 0; ++q) h.levels.push_back(q);
  for (const double level : h.levels) h.range = std::max(h.range, std::abs(level));
  h.range *= static_cast<double>(kBins) / static_cast<double>(kBins - 3);  // room for the outer bars
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '&': out += "&amp;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

constexpr double kPanelWidth = 380, kPanelHeight = 230, kMargin = 18, kTop = 44, kBottom = 26;

std::string panel(const WeightHistogram& h, double left, double top) {
  const double width = kPanelWidth - 2 * kMargin, height = kPanelHeight - kTop - kBottom;
  const double bottom = top + kTop + height;
  const int64_t most = std::max<int64_t>(1, *std::max_element(h.counts.begin(), h.counts.end()));
  int64_t all = 0;
  for (const int64_t c : h.counts) all += c;
  std::string out = fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" class=\"title\">{}</text>\n", left + kMargin, top + 18,
                                escaped(h.title));
  out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left + kMargin, top + 33, escaped(h.subtitle));
  const double bar = width / static_cast<double>(h.counts.size());
  for (size_t i = 0; i < h.counts.size(); ++i) {
    if (h.counts[i] == 0) continue;
    const double tall = height * static_cast<double>(h.counts[i]) / static_cast<double>(most);
    out += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/>\n",
                       left + kMargin + bar * static_cast<double>(i), bottom - tall, bar, tall);
  }
  for (const double level : h.levels) {
    const double x = left + kMargin + width * (level / h.range + 1) / 2;
    out += fmt::format("<line x1=\"{:.2f}\" x2=\"{:.2f}\" y1=\"{:.2f}\" y2=\"{:.2f}\" class=\"level\"/>\n", x, x,
                       top + kTop, bottom);
  }
  out += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left + kMargin,
                     left + kMargin + width, bottom, bottom);
  const std::pair<double, const char*> ticks[] = {{-1, "start"}, {0, "middle"}, {1, "end"}};
  for (const auto& [place, anchor] : ticks)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{:.3g}</text>\n",
                       left + kMargin + width * (place + 1) / 2, bottom + 14, anchor, place * h.range);
  return out + fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:.1f} % in the tallest bin</text>\n",
                           left + kMargin + width, top + kTop + 10,
                           100.0 * static_cast<double>(most) / static_cast<double>(std::max<int64_t>(1, all)));
}

}  // namespace

WeightHistogram matrix_histogram(const QuantizedMatrix& m, const std::string& title) {
  WeightHistogram h{.title = title,
                    .subtitle = fmt::format("{} x {}, {:.3f} bits: {}", m.n, m.k, m.format.bits_per_weight(m.n, m.k),
                                            to_string(m.format)),
                    .range = 1,
                    .counts = std::vector<int64_t>(kBins),
                    .levels = {}};
  const std::vector<double> ranges = line_ranges(m);
  set_levels(m, ranges, h);
  std::vector<float> row(static_cast<size_t>(m.k));
  for (int64_t r = 0; r < m.n; ++r) {
    m.dequantize_row(r, row);
    for (int64_t j = 0; j < m.k; ++j) {
      const int64_t stored = m.k_order.empty() ? j : m.k_order[static_cast<size_t>(j)];
      const double scale = scale_at(m, ranges, r, stored);
      count(h, scale != 0 ? static_cast<double>(row[static_cast<size_t>(j)]) / scale : 0);
    }
  }
  return h;
}

Result<WeightHistogram> weight_histogram(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const std::string& module) {
  HEARTH_TRY_ASSIGN(const ModuleShape shape, shape_of(config, module));
  HEARTH_TRY_ASSIGN(const Quantization quantization, Quantization::parse(checkpoint));
  HEARTH_TRY_ASSIGN(const auto format, quantization.format(checkpoint, module, shape.n, shape.k));
  if (!format) return plain_histogram(checkpoint, module);
  HEARTH_TRY_ASSIGN(const QuantizedMatrix matrix, quantization.read(checkpoint, module, shape.n, shape.k));
  return matrix_histogram(matrix, module);
}

std::string histograms_svg(std::span<const WeightHistogram> histograms) {
  constexpr size_t kColumns = 3;
  const size_t columns = std::min(kColumns, std::max<size_t>(1, histograms.size()));
  const size_t rows = (histograms.size() + columns - 1) / columns;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} "
      "{1:.0f}\">\n"
      "<style>text {{ font: 10px sans-serif; fill: #333 }} .title {{ font-weight: bold; font-size: 12px }} "
      "rect {{ fill: #4878a8 }} line {{ stroke: #333; stroke-width: 1 }} "
      ".level {{ stroke: #d2691e; stroke-width: 0.7; stroke-opacity: 0.8 }}</style>\n"
      "<path d=\"M0 0H{0:.0f}V{1:.0f}H0Z\" fill=\"#fff\"/>\n",
      kPanelWidth * static_cast<double>(columns), kPanelHeight * static_cast<double>(rows));
  for (size_t i = 0; i < histograms.size(); ++i)
    out += panel(histograms[i], kPanelWidth * static_cast<double>(i % columns),
                 kPanelHeight * static_cast<double>(i / columns));
  return out + "</svg>\n";
}

Status plot_weights(const Checkpoint& checkpoint, const ModelConfig& config, std::vector<std::string> modules,
                    const std::filesystem::path& file) {
  if (file.has_extension() && file.extension() != ".svg")
    return invalid_argument("--plot: {} would hold SVG; wanted a name that ends in .svg", file.string());
  if (modules.empty()) {
    for (const int64_t layer : {int64_t{0}, config.layers - 1})
      for (const char* name : {"self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"})
        modules.push_back(fmt::format("model.layers.{}.{}", layer, name));
  }
  std::vector<WeightHistogram> histograms;
  for (std::string& module : modules) {
    if (module.ends_with(".weight")) module.resize(module.size() - std::string_view(".weight").size());
    HEARTH_TRY_ASSIGN(WeightHistogram histogram, weight_histogram(checkpoint, config, module));
    histograms.push_back(std::move(histogram));
  }
  errno = 0;
  std::ofstream out(file, std::ios::binary);
  out << histograms_svg(histograms);
  out.close();
  if (!out) return io_error(errno != 0 ? errno : EIO, "write", file).with_context("--plot");
  return {};
}

}  // namespace hearth
