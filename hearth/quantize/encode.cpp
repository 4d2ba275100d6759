// SPDX-License-Identifier: Apache-2.0
// What is around the methods: checking, row-major weights into column panels and back, packing, errors.
#include "hearth/quantize/encode.h"

#include <algorithm>
#include <cmath>

#include "hearth/quantize/gptq.h"
#include "hearth/quantize/sbvr_authors.h"
#include "hearth/quantize/sbvr_lines.h"

namespace hearth {
namespace {

// Rows that are encoded at a time, so that panels stay small beside the matrix.
constexpr int64_t kPanelRows = 2048;
// Lines that a group judges exactly.
constexpr int64_t kLineCandidates = 8;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

Status check_weights(std::span<const float> w, int64_t n, int64_t k) {
  if (n <= 0 || k <= 0) return invalid_argument("encode: weight [{}, {}]: both dimensions must be positive", n, k);
  if (static_cast<int64_t>(w.size()) != n * k)
    return invalid_argument("encode: {} values for a weight [{}, {}]", w.size(), n, k);
  for (size_t i = 0; i < w.size(); ++i) {
    if (!std::isfinite(w[i])) {
      const auto at = static_cast<int64_t>(i);
      return invalid_argument("encode: weight [{}, {}]: row {}, column {} is {}", n, k, at / k, at % k, w[i]);
    }
  }
  return {};
}

// The levels of a format's code.
Result<CodeLevels> code_levels(const WeightFormat& format) {
  CodeLevels code;
  code.scale_dtype = format.scale_dtype;
  const bool grouped = format.scale_layout == ScaleLayout::kGroup, by_row = format.scale_layout == ScaleLayout::kRow;
  if (!grouped && !by_row) return unsupported("encode: {}: scales by row or group are made only", to_string(format));
  switch (format.code) {
    case WeightCode::kU4:
      code.zero_point = format.has_zero_point;
      code.low = code.zero_point ? 0.0f : -8.0f;
      code.high = code.low + 15;
      return code;
    case WeightCode::kI4SignMagnitude: code.low = -7; return code;
    case WeightCode::kC4:
      code.kind = CodeLevels::Kind::kTable;
      for (size_t i = 0; i < 8; ++i) {
        code.levels[8 + i] = kC4Levels[i];
        code.levels[7 - i] = -kC4Levels[i];
      }
      return code;
    case WeightCode::kE4m3: code.kind = CodeLevels::Kind::kE4m3; return code;
    default: return unsupported("encode: {} is no format that hearth makes", to_string(format));
  }
}

// The stored nibble of a rank.
uint8_t nibble_of(WeightCode code, uint8_t rank) {
  switch (code) {
    case WeightCode::kI4SignMagnitude: return static_cast<uint8_t>(rank < 7 ? 8 | (7 - rank) : rank - 7);
    case WeightCode::kC4: return static_cast<uint8_t>(rank < 8 ? 8 | (7 - rank) : rank - 8);
    default: return rank;
  }
}

// Rows [first, first + count) of w in the order of the model.
Panel make_panel(std::span<const float> w, int64_t first, int64_t count, const InputModel& model, bool lines,
                 ThreadPool& pool) {
  const int64_t k = model.k, groups = (k + model.group - 1) / model.group;
  Panel panel;
  panel.rows = round_up(count, kRowTile);
  panel.w.resize(static_cast<size_t>(k * panel.rows));
  const auto parameters = static_cast<size_t>(groups * panel.rows);
  if (lines) {
    panel.line.resize(parameters);
  } else {
    panel.scale.resize(parameters);
    panel.zero.resize(parameters);
  }
  pool.parallel_for(k, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t place = begin; place < end; ++place) {
      const float* from = w.data() + first * k + model.order[static_cast<size_t>(place)];
      for (int64_t row = 0; row < count; ++row) panel.w[static_cast<size_t>(place * panel.rows + row)] = from[row * k];
    }
  });
  return panel;
}

// `lines`: the codebook's ranks, null for other codes.
Status store_panel(const Panel& panel, int64_t first, int64_t count, const InputModel& model,
                   const PreparedLines* lines, QuantizedMatrix& out, ThreadPool& pool) {
  const int64_t k = model.k, groups = (k + model.group - 1) / model.group, row_bytes = out.row_bytes();
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const auto from = static_cast<size_t>(g * panel.rows + row);
      const auto to = static_cast<size_t>((first + row) * groups + g);
      if (!panel.line.empty()) {
        out.line_index[to] = panel.line[from];
        continue;
      }
      if (!std::isfinite(panel.scale[from]))
        return invalid_argument("encode: row {}, group {}: its scale does not fit {}", first + row, g,
                                dtype_name(out.format.scale_dtype));
      out.scales[to] = panel.scale[from];
      if (out.format.has_zero_point) out.zeros[to] = static_cast<uint8_t>(panel.zero[from]);
    }
  }
  pool.parallel_for(count, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<uint8_t> codes(out.codes.data() + (first + row) * row_bytes, static_cast<size_t>(row_bytes));
      for (int64_t place = 0; place < k; ++place) {
        const int64_t column = model.order[static_cast<size_t>(place)];
        const auto at = static_cast<size_t>(place * panel.rows + row);
        if (out.format.code == WeightCode::kE4m3) {
          const float scale = panel.scale[static_cast<size_t>(column / model.group * panel.rows + row)];
          codes[static_cast<size_t>(column)] = e4m3::from_float(scale == 0 ? 0.0f : panel.value[at] / scale).bits;
        } else if (lines != nullptr) {
          const auto line =
              static_cast<size_t>(panel.line[static_cast<size_t>(column / model.group * panel.rows + row)]);
          put_nibble(codes, column, lines->codes[line * 16 + panel.rank[at]]);
        } else {
          put_nibble(codes, column, nibble_of(out.format.code, panel.rank[at]));
        }
      }
    }
  });
  return {};
}

// SBVR: learns the matrix's lines and stores them.
Status learn(std::span<const float> w, const InputModel& model, const EncodeOptions& options, QuantizedMatrix& out,
             PreparedLines& prepared, Compute& compute) {
  WeightFormat& format = out.format;
  if (format.lines == 0) format.lines = affordable_lines(format, out.n, out.k, options.max_bits);
  HEARTH_TRY(format.validate(out.n, out.k));
  const double widest = 65504.0 * (format.integer_lines ? 127 : 1);  // an f16 times what a line's codes add up to
  const auto largest = std::ranges::max_element(w, {}, [](float x) { return std::fabs(x); });
  if (std::fabs(double{*largest}) > widest)
    return invalid_argument(
        "encode: weight [{}, {}] holds {}, which does not fit f16 coefficient lines; wanted at most {}", out.n, out.k,
        *largest, widest);
  std::vector<float> weight(static_cast<size_t>(out.k));
  for (size_t place = 0; place < weight.size(); ++place)
    weight[static_cast<size_t>(model.order[place])] = model.weight[place];
  HEARTH_TRY_ASSIGN(const Codebook book, learn_lines(w, out.n, out.k, format, weight, options.seed, compute));
  prepared = prepare(book);
  prepared.levels.line_values = prepared.values;
  out.lines = book.coefficients;
  if (format.integer_lines) out.line_scales = book.scales;
  out.line_index.resize(static_cast<size_t>(out.n * ((out.k + format.group_k - 1) / format.group_k)));
  return {};
}

}  // namespace

Result<QuantizedMatrix> encode(std::span<const float> w, int64_t n, int64_t k, const SecondMoments* moments,
                               const EncodeOptions& options, Compute& compute, EncodeReport* report) {
  HEARTH_TRY(check_weights(w, n, k));
  if (options.format.code != WeightCode::kBitvectors || options.format.lines != 0) {
    HEARTH_TRY(options.format.validate(n, k));
  }
  if (moments != nullptr && moments->k() != k)
    return invalid_argument("encode: weight [{}, {}] with second moments of {} channels", n, k, moments->k());
  if (options.method == EncodeMethod::kGptq && (moments == nullptr || moments->tokens() == 0))
    return invalid_argument("encode: weight [{}, {}]: GPTQ needs second moments of its input", n, k);
  const bool lines = options.format.code == WeightCode::kBitvectors;
  if (options.method == EncodeMethod::kAuthors) {
    if (!lines || options.format.bitvectors != 4 || options.format.integer_lines)
      return unsupported("encode: the encoder of SBVR's authors makes 4 bitvectors with f16 lines, not {}",
                         to_string(options.format));
    HEARTH_TRY_ASSIGN(QuantizedMatrix matrix, encode_sbvr_authors(w, n, k, compute.pool()));
    if (report != nullptr) {
      HEARTH_TRY_ASSIGN(*report, measure(w, matrix, moments, compute));
    }
    return matrix;
  }
  if (lines && options.format.bitvectors > 4)
    return unsupported("encode: {} bitvectors, hearth makes 2 to 4", options.format.bitvectors);
  if (lines && options.format.group_k <= 0)
    return invalid_argument("encode: a group of {}, wanted at least 1", options.format.group_k);
  CodeLevels code;
  if (!lines) {
    HEARTH_TRY_ASSIGN(code, code_levels(options.format));
  }

  QuantizedMatrix out;
  out.format = options.format;
  out.n = n;
  out.k = k;
  out.codes.resize(static_cast<size_t>(n * out.row_bytes()));
  const auto scales = static_cast<size_t>(options.format.scale_count(n, k));
  out.scales.resize(scales);
  if (options.format.has_zero_point) out.zeros.resize(scales);

  const int64_t group = options.format.scale_layout == ScaleLayout::kRow ? k : options.format.group_k;
  HEARTH_TRY_ASSIGN(const InputModel model, make_input_model(k, group, moments, options, compute));
  PreparedLines prepared;
  LineSearch search;
  if (lines) {
    HEARTH_TRY(learn(w, model, options, out, prepared, compute));
    code = prepared.levels;
    search = {.candidates = kLineCandidates,
              .find = [&](const float* panel, int64_t columns, const float* weight, int64_t rows, uint16_t* found) {
                return compute.assign_lines({.table = &prepared.table,
                                             .rows = rows,
                                             .columns = columns,
                                             .w = panel,
                                             .weight = weight,
                                             .candidates = kLineCandidates,
                                             .lines = found});
              }};
  }
  for (int64_t first = 0; first < n; first += kPanelRows) {
    const int64_t count = std::min(kPanelRows, n - first);
    Panel panel = make_panel(w, first, count, model, lines, compute.pool());
    HEARTH_TRY(encode_panel(code, model, options, lines ? &search : nullptr, panel, compute));
    HEARTH_TRY(store_panel(panel, first, count, model, lines ? &prepared : nullptr, out, compute.pool()));
  }
  if (report != nullptr) {
    HEARTH_TRY_ASSIGN(*report, measure(w, out, moments, compute));
  }
  return out;
}

Result<double> encoding_loss(std::span<const float> w, int64_t n, const InputModel& model, const EncodeOptions& options,
                             Compute& compute) {
  HEARTH_TRY(check_weights(w, n, model.k));
  HEARTH_TRY_ASSIGN(const CodeLevels code, code_levels(options.format));
  double loss = 0;
  for (int64_t first = 0; first < n; first += kPanelRows) {
    Panel panel = make_panel(w, first, std::min(kPanelRows, n - first), model, false, compute.pool());
    std::vector<float> error = panel.w;  // which feedback changes
    HEARTH_TRY(encode_panel(code, model, options, nullptr, panel, compute));
    for (size_t i = 0; i < error.size(); ++i) error[i] -= panel.value[i];
    std::vector<float> product(error.size());
    HEARTH_TRY(compute.subtract_product({.m = model.k,
                                         .n = panel.rows,
                                         .p = model.k,
                                         .a = model.h.data(),
                                         .lda = model.k,
                                         .b = error.data(),
                                         .ldb = panel.rows,
                                         .c = product.data(),
                                         .ldc = panel.rows}));
    for (size_t i = 0; i < error.size(); ++i) loss -= static_cast<double>(error[i]) * static_cast<double>(product[i]);
  }
  return loss;
}

Result<EncodeReport> measure(std::span<const float> w, const QuantizedMatrix& matrix, const SecondMoments* moments,
                             Compute& compute) {
  const int64_t n = matrix.n, k = matrix.k;
  EncodeReport report;
  const bool informed = moments != nullptr && moments->tokens() > 0;
  std::vector<float> h(informed ? static_cast<size_t>(k * k) : 0);
  if (informed) {
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = i; j < k; ++j)
        h[static_cast<size_t>(i * k + j)] = h[static_cast<size_t>(j * k + i)] = static_cast<float>(
            moments->sums()[static_cast<size_t>(i * k + j)] / static_cast<double>(moments->tokens()));
  }
  // sum over rows of v^T H v for v [k][rows].
  const auto quadratic = [&](const std::vector<float>& v, int64_t rows) -> Result<double> {
    std::vector<float> product(v.size());
    HEARTH_TRY(compute.subtract_product({.m = k,
                                         .n = rows,
                                         .p = k,
                                         .a = h.data(),
                                         .lda = k,
                                         .b = v.data(),
                                         .ldb = rows,
                                         .c = product.data(),
                                         .ldc = rows}));
    double sum = 0;
    for (size_t i = 0; i < v.size(); ++i) sum -= static_cast<double>(v[i]) * static_cast<double>(product[i]);
    return sum;
  };
  for (int64_t first = 0; first < n; first += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, n - first);
    std::vector<float> original(static_cast<size_t>(k * rows)), error(original.size());
    compute.pool().parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t r = begin; r < end; ++r) {
        matrix.dequantize_row(first + r, row);
        for (int64_t j = 0; j < k; ++j) {
          const float value = w[static_cast<size_t>((first + r) * k + j)];
          original[static_cast<size_t>(j * rows + r)] = value;
          error[static_cast<size_t>(j * rows + r)] = value - row[static_cast<size_t>(j)];
        }
      }
    });
    for (size_t i = 0; i < error.size(); ++i) {
      report.squared_error += static_cast<double>(error[i]) * static_cast<double>(error[i]);
      report.squared_norm += static_cast<double>(original[i]) * static_cast<double>(original[i]);
    }
    if (!informed) continue;
    HEARTH_TRY_ASSIGN(const double loss, quadratic(error, rows));
    HEARTH_TRY_ASSIGN(const double norm, quadratic(original, rows));
    report.proxy_loss += loss;
    report.proxy_norm += norm;
  }
  return report;
}

}  // namespace hearth
