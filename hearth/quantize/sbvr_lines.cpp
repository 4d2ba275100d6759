// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/sbvr_lines.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "hearth/base/random.h"
#include "hearth/tensor/quantized_matrix.h"

namespace hearth {
namespace {

constexpr int64_t kGroupsPerLine = 16;    // that learn: more do not change lines much
constexpr int64_t kFewestGroups = 16384;  // that learn, where there are as many
constexpr int kRounds = 14;
constexpr int64_t kShapes = 8192;   // of the dictionary that the search starts from
constexpr int64_t kCandidates = 4;  // lines that are judged exactly

// The groups that learn: for each group of columns some rows, as a panel.
struct Sample {
  struct Part {
    int64_t begin, end;          // columns
    int64_t count;               // rows
    int64_t rows;                // padded
    std::vector<float> w;        // [columns][rows]
    std::vector<float> weight;   // [columns]
    std::vector<uint16_t> line;  // [rows]
  };
  std::vector<Part> parts;
  int64_t groups = 0;
};

Sample take_sample(std::span<const float> w, int64_t n, int64_t k, int64_t group, std::span<const float> weight,
                   int64_t lines) {
  Sample sample;
  const int64_t per_row = (k + group - 1) / group;
  const int64_t wanted = std::max(kFewestGroups, kGroupsPerLine * lines);
  const int64_t count = std::min(n, std::max<int64_t>(1, (wanted + per_row - 1) / per_row));
  for (int64_t g = 0; g < per_row; ++g) {
    Sample::Part part{.begin = g * group, .end = std::min(k, (g + 1) * group), .count = count};
    part.rows = (count + kRowTile - 1) / kRowTile * kRowTile;
    part.w.resize(static_cast<size_t>((part.end - part.begin) * part.rows));
    part.weight.assign(weight.begin() + part.begin, weight.begin() + part.end);
    part.line.resize(static_cast<size_t>(part.rows));
    for (int64_t row = 0; row < count; ++row)
      for (int64_t j = part.begin; j < part.end; ++j)
        part.w[static_cast<size_t>((j - part.begin) * part.rows + row)] =
            w[static_cast<size_t>(row * n / count * k + j)];
    sample.groups += count;
    sample.parts.push_back(std::move(part));
  }
  return sample;
}

// One group of the sample.
struct Member {
  const Sample::Part* part;
  int64_t row;
  float x(int64_t c) const { return part->w[static_cast<size_t>(c * part->rows + row)]; }
  int64_t columns() const { return part->end - part->begin; }
};

// Normal equations of a line: sums over its members' weights, by code.
struct Normal {
  std::array<double, 16> weight{}, moment{};
  double square = 0, error = 0;

  // Adds a group, each weight to the nearest of `values` (ascending).
  void add(const Member& member, const float* values, const uint8_t* codes, int count) {
    for (int64_t c = 0; c < member.columns(); ++c) {
      const float x = member.x(c), d = member.part->weight[static_cast<size_t>(c)];
      int rank = 0;
      for (int i = 1; i < count; ++i) rank += x > 0.5f * (values[i - 1] + values[i]);
      const double wide = d, off = static_cast<double>(x) - static_cast<double>(values[rank]);
      weight[codes[rank]] += wide;
      moment[codes[rank]] += wide * static_cast<double>(x);
      square += wide * static_cast<double>(x) * static_cast<double>(x);
      error += wide * off * off;
    }
  }
  // The coefficients of least squared error; bitvectors that no weight tells apart keep `fallback`.
  void solve(int bitvectors, std::span<const float> fallback, std::span<float> out) const {
    std::array<std::array<double, 5>, 4> a{};
    double trace = 0;
    for (int s = 0; s < bitvectors; ++s) {
      for (int code = 0; code < 1 << bitvectors; ++code) {
        if (!(code >> (bitvectors - 1 - s) & 1)) continue;
        for (int t = 0; t < bitvectors; ++t)
          if (code >> (bitvectors - 1 - t) & 1)
            a[static_cast<size_t>(s)][static_cast<size_t>(t)] += weight[static_cast<size_t>(code)];
        a[static_cast<size_t>(s)][4] += moment[static_cast<size_t>(code)];
      }
      trace += a[static_cast<size_t>(s)][static_cast<size_t>(s)];
    }
    // A little of the fallback keeps the system regular.
    const double ridge = 1e-6 * trace + 1e-300;
    for (size_t s = 0; s < static_cast<size_t>(bitvectors); ++s) {
      a[s][s] += ridge;
      a[s][4] += ridge * static_cast<double>(fallback[s]);
    }
    const auto size = static_cast<size_t>(bitvectors);
    for (size_t i = 0; i < size; ++i) {
      for (size_t r = i + 1; r < size; ++r) {
        const double factor = a[r][i] / a[i][i];
        for (size_t c = i; c < 5; ++c) a[r][c] -= factor * a[i][c];
      }
    }
    for (size_t i = size; i-- > 0;) {
      double sum = a[i][4];
      for (size_t c = i + 1; c < size; ++c) sum -= a[i][c] * static_cast<double>(out[c]);
      out[i] = static_cast<float>(sum / a[i][i]);
    }
  }
};

// Random lines for groups of root mean square 1: magnitudes near a geometric row, both signs, sums about centred.
Codebook dictionary(int bitvectors, bool integer, uint64_t seed) {
  Codebook book{.bitvectors = bitvectors, .integer = integer};
  Random random(seed, 1);
  const auto s = static_cast<size_t>(bitvectors);
  std::array<float, 4> wanted{};
  const float least = bitvectors == 4 ? 3.6f : bitvectors == 3 ? 2.6f : 1.6f;
  while (book.lines() < kShapes) {
    const float ratio = random.uniform(1.15f, 2.3f);
    float magnitude = 1, positive = 0, negative = 0;
    for (size_t i = 0; i < s; ++i, magnitude *= ratio) {
      wanted[i] = magnitude * std::exp(0.12f * random.normal()) * (random.uniform() < 0.5f ? -1.0f : 1.0f);
      (wanted[i] > 0 ? positive : negative) += std::abs(wanted[i]);
    }
    if (std::abs(positive - negative) > 0.3f * (positive + negative)) continue;
    const float size = random.uniform(least, least + 3.4f) / (positive + negative);
    for (float& value : wanted) value *= size;
    const size_t at = book.coefficients.size();
    book.coefficients.resize(at + s);
    book.scales.push_back(1);
    round_line(std::span(wanted).first(s), integer, std::span(book.coefficients).subspan(at, s), book.scales.back());
  }
  return book;
}

// A line for one group: the best of the dictionary at the group's size, then least squares in turns.
void fit_one(const Member& member, uint16_t shape, float size, const Codebook& shapes, std::span<float> coefficients,
             float& scale) {
  const auto s = static_cast<size_t>(shapes.bitvectors);
  std::array<float, 4> wanted{};
  for (size_t i = 0; i < s; ++i) wanted[i] = size * shapes.coefficients[shape * s + i] * shapes.scales[shape];
  for (int turn = 0; turn < 3; ++turn) {
    Codebook own{.bitvectors = shapes.bitvectors,
                 .integer = false,
                 .coefficients = {wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(s)},
                 .scales = {1}};
    const PreparedLines line = prepare(own);
    Normal normal;
    normal.add(member, line.values.data(), line.codes.data(), line.levels.count);
    normal.solve(shapes.bitvectors, std::span(wanted).first(s), std::span(wanted).first(s));
  }
  round_line(std::span(wanted).first(s), shapes.integer, coefficients, scale);
}

// The lines that groups would take for themselves, written to `places` of the book.
struct OwnLines {
  std::vector<int64_t> members;  // ascending
  std::vector<int64_t> places;
};

Status fit_own(const std::vector<Member>& members, const OwnLines& own, const Codebook& shapes,
               const PreparedLines& start, Codebook& book, Compute& compute) {
  const auto s = static_cast<size_t>(book.bitvectors);
  for (size_t first = 0, last = 0; first < own.members.size(); first = last) {
    const Sample::Part& part = *members[static_cast<size_t>(own.members[first])].part;
    while (last < own.members.size() && members[static_cast<size_t>(own.members[last])].part == &part) ++last;
    const int64_t columns = part.end - part.begin, count = static_cast<int64_t>(last - first);
    const int64_t rows = (count + kRowTile - 1) / kRowTile * kRowTile;
    std::vector<float> scaled(static_cast<size_t>(columns * rows)), sizes(static_cast<size_t>(count));
    std::vector<uint16_t> shape(static_cast<size_t>(rows));
    for (int64_t i = 0; i < count; ++i) {
      const Member& member = members[static_cast<size_t>(own.members[first + static_cast<size_t>(i)])];
      double square = 0;
      for (int64_t c = 0; c < columns; ++c)
        square += static_cast<double>(member.x(c)) * static_cast<double>(member.x(c));
      const auto size = static_cast<float>(std::sqrt(square / static_cast<double>(columns)));
      sizes[static_cast<size_t>(i)] = size;
      for (int64_t c = 0; c < columns; ++c)
        scaled[static_cast<size_t>(c * rows + i)] = size > 0 ? member.x(c) / size : 0.0f;
    }
    HEARTH_TRY(compute.assign_lines({.table = &start.table,
                                     .rows = rows,
                                     .columns = columns,
                                     .w = scaled.data(),
                                     .weight = part.weight.data(),
                                     .candidates = 1,
                                     .lines = shape.data()}));
    compute.pool().parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const auto at = first + static_cast<size_t>(i), to = static_cast<size_t>(own.places[at]);
        fit_one(members[static_cast<size_t>(own.members[at])], shape[static_cast<size_t>(i)],
                sizes[static_cast<size_t>(i)], shapes, std::span(book.coefficients).subspan(to * s, s),
                book.scales[to]);
      }
    });
  }
  return {};
}

// Each group's best line.
Status assign(Sample& sample, const PreparedLines& prepared, Compute& compute) {
  for (Sample::Part& part : sample.parts) {
    std::vector<uint16_t> candidates(static_cast<size_t>(kCandidates * part.rows));
    const int64_t columns = part.end - part.begin;
    HEARTH_TRY(compute.assign_lines({.table = &prepared.table,
                                     .rows = part.rows,
                                     .columns = columns,
                                     .w = part.w.data(),
                                     .weight = part.weight.data(),
                                     .candidates = kCandidates,
                                     .lines = candidates.data()}));
    HEARTH_TRY(compute.fit_group({.code = &prepared.levels,
                                  .metric = FitMetric::kDiagonal,
                                  .rows = part.rows,
                                  .columns = columns,
                                  .w = part.w.data(),
                                  .weight = part.weight.data(),
                                  .candidates = kCandidates,
                                  .candidate_lines = candidates.data(),
                                  .out = {.line = part.line}}));
  }
  return {};
}

// Refits every line to its groups; gives lines without groups to the groups that are worst off.
Status refit(const Sample& sample, const std::vector<Member>& members, const PreparedLines& prepared,
             const Codebook& shapes, const PreparedLines& start, Codebook& book, Compute& compute) {
  const auto s = static_cast<size_t>(book.bitvectors);
  std::vector<std::vector<int64_t>> of_line(static_cast<size_t>(book.lines()));
  for (size_t i = 0; i < members.size(); ++i)
    of_line[members[i].part->line[static_cast<size_t>(members[i].row)]].push_back(static_cast<int64_t>(i));
  std::vector<float> shares(static_cast<size_t>(sample.groups));
  compute.pool().parallel_for(book.lines(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t line = begin; line < end; ++line) {
      const auto at = static_cast<size_t>(line);
      Normal normal;
      for (const int64_t index : of_line[at]) {
        const double square = normal.square, error = normal.error;
        normal.add(members[static_cast<size_t>(index)], prepared.values.data() + at * 16,
                   prepared.codes.data() + at * 16, prepared.levels.count);
        shares[static_cast<size_t>(index)] =
            normal.square > square ? static_cast<float>((normal.error - error) / (normal.square - square)) : 0.0f;
      }
      if (of_line[at].empty()) continue;
      std::array<float, 4> old{}, wanted{};
      for (size_t i = 0; i < s; ++i) old[i] = book.coefficients[at * s + i] * book.scales[at];
      normal.solve(book.bitvectors, std::span(old).first(s), std::span(wanted).first(s));
      round_line(std::span(wanted).first(s), book.integer, std::span(book.coefficients).subspan(at * s, s),
                 book.scales[at]);
    }
  });
  std::vector<int64_t> worst(members.size());
  std::iota(worst.begin(), worst.end(), int64_t{0});
  OwnLines own;
  for (size_t line = 0; line < of_line.size(); ++line)
    if (of_line[line].empty()) own.places.push_back(static_cast<int64_t>(line));
  const size_t dead = std::min(own.places.size(), worst.size());
  own.places.resize(dead);
  std::partial_sort(worst.begin(), worst.begin() + static_cast<std::ptrdiff_t>(dead), worst.end(),
                    [&](int64_t a, int64_t b) {
                      const float x = shares[static_cast<size_t>(a)], y = shares[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  own.members.assign(worst.begin(), worst.begin() + static_cast<std::ptrdiff_t>(dead));
  std::ranges::sort(own.members);
  return fit_own(members, own, shapes, start, book, compute);
}

}  // namespace

void round_line(std::span<const float> wanted, bool integer, std::span<float> coefficients, float& scale) {
  scale = 1;
  if (!integer) {
    std::ranges::transform(wanted, coefficients.begin(), [](float c) { return f16::from_float(c).to_float(); });
    return;
  }
  float positive = 0, negative = 0;
  for (const float c : wanted) (c > 0 ? positive : negative) += std::abs(c);
  const float widest = std::max(positive, negative);
  if (!(widest > 0)) {
    std::ranges::fill(coefficients, 0.0f);
    return;
  }
  // Rounding can carry a sum past 127 by half a step per coefficient: a slightly larger scale then.
  for (float room = 127.0f; room > 120.0f; room -= 0.5f) {
    scale = f16::from_float(std::max(widest / room, 0x1p-24f)).to_float();
    positive = negative = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      coefficients[i] = std::nearbyint(wanted[i] / scale);
      (coefficients[i] > 0 ? positive : negative) += std::abs(coefficients[i]);
    }
    if (std::max(positive, negative) <= 127) return;
  }
  HEARTH_CHECK(false, "an integer line of sums {} and {}", positive, negative);
}

PreparedLines prepare(const Codebook& book) {
  PreparedLines prepared;
  const int64_t lines = book.lines();
  const auto s = static_cast<size_t>(book.bitvectors), count = size_t{1} << s;
  prepared.values.resize(static_cast<size_t>(lines) * 16);
  prepared.codes.resize(static_cast<size_t>(lines) * 16);
  std::vector<float> sizes(static_cast<size_t>(lines));
  for (size_t line = 0; line < static_cast<size_t>(lines); ++line) {
    std::array<float, 16> sums{};
    subset_sums(std::span(book.coefficients).subspan(line * s, s), sums);
    std::array<uint8_t, 16> codes{};
    std::iota(codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(count), uint8_t{0});
    std::stable_sort(codes.begin(), codes.begin() + static_cast<std::ptrdiff_t>(count),
                     [&](uint8_t a, uint8_t b) { return sums[a] < sums[b]; });
    for (size_t i = 0; i < 16; ++i) {
      const uint8_t code = codes[std::min(i, count - 1)];
      prepared.codes[line * 16 + i] = code;
      prepared.values[line * 16 + i] = book.scales[line] * sums[code];
    }
    sizes[line] = prepared.values[line * 16 + count - 1] - prepared.values[line * 16];
  }
  prepared.levels.kind = CodeLevels::Kind::kLines;
  prepared.levels.count = static_cast<int>(count);
  prepared.levels.line_values = prepared.values;

  LineTable& table = prepared.table;
  std::vector<uint16_t> order(static_cast<size_t>(lines));
  std::iota(order.begin(), order.end(), uint16_t{0});
  std::ranges::stable_sort(order, [&](uint16_t a, uint16_t b) { return sizes[a] < sizes[b]; });
  table.lines = (lines + kRowTile - 1) / kRowTile * kRowTile;
  table.count = static_cast<int64_t>(count);
  const auto padded = static_cast<size_t>(table.lines);
  table.middle.resize((count - 1) * padded);
  table.step.resize((count - 1) * padded);
  for (size_t i = 0; i < padded; ++i) {
    const uint16_t line = order[std::min(i, static_cast<size_t>(lines) - 1)];
    const float* values = prepared.values.data() + line * size_t{16};
    table.line.push_back(line);
    table.size.push_back(sizes[line]);
    table.smallest.push_back(values[0]);
    for (size_t v = 0; v + 1 < count; ++v) {
      table.middle[v * padded + i] = 0.5f * (values[v] + values[v + 1]);
      table.step[v * padded + i] = values[v + 1] - values[v];
    }
  }
  return prepared;
}

int64_t affordable_lines(const WeightFormat& format, int64_t n, int64_t k, double max_bits) {
  WeightFormat tried = format;
  const auto fits = [&](int64_t lines) {
    tried.lines = lines;
    return tried.bits_per_weight(n, k) <= max_bits;
  };
  const int64_t groups = n * ((k + format.group_k - 1) / format.group_k);
  // Indices of two bytes pay where many more lines fit than one byte can name.
  for (int64_t lines = std::min<int64_t>(4096, groups / 2); lines >= 512; lines = lines * 15 / 16)
    if (fits(lines)) return lines;
  for (int64_t lines = std::clamp<int64_t>(groups / 2, 1, 256); lines > 1; --lines)
    if (fits(lines)) return lines;
  return 1;
}

Result<Codebook> learn_lines(std::span<const float> w, int64_t n, int64_t k, const WeightFormat& format,
                             std::span<const float> weight, uint64_t seed, Compute& compute) {
  const int bitvectors = format.bitvectors;
  Sample sample = take_sample(w, n, k, format.group_k, weight, format.lines);
  std::vector<Member> members;
  for (const Sample::Part& part : sample.parts)
    for (int64_t row = 0; row < part.count; ++row) members.push_back({&part, row});

  // Start: the lines that groups, spread evenly over the sample, would take for themselves.
  const Codebook shapes = dictionary(bitvectors, format.integer_lines, seed);
  const PreparedLines start = prepare(shapes);
  Codebook book{.bitvectors = bitvectors, .integer = format.integer_lines};
  book.coefficients.resize(static_cast<size_t>(format.lines * bitvectors));
  book.scales.assign(static_cast<size_t>(format.lines), 1.0f);
  OwnLines own;
  for (int64_t line = 0; line < format.lines; ++line) {
    own.members.push_back(line * sample.groups / format.lines);
    own.places.push_back(line);
  }
  HEARTH_TRY(fit_own(members, own, shapes, start, book, compute));
  for (int round = 0; round < kRounds; ++round) {
    const PreparedLines prepared = prepare(book);
    HEARTH_TRY(assign(sample, prepared, compute));
    HEARTH_TRY(refit(sample, members, prepared, shapes, start, book, compute));
  }
  return book;
}

}  // namespace hearth
