// SPDX-License-Identifier: Apache-2.0
#include "hearth/quantize/sbvr_authors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <numbers>

namespace hearth {
namespace {

constexpr int kSums = 4;
constexpr int64_t kGroup = 128;
constexpr int64_t kMostLines = 65536;
constexpr int64_t kWarmUp = 10;  // lines that are searched in any case
constexpr size_t kRecent = 20;   // searched lines whose mean error sets the cutoff
constexpr double kCutoff = 0.99;
constexpr double kSameLine = 1e-4;  // relative L1 distance of lines that are one

using Line = std::array<float, kSums>;

// A group's values in order, with sums of all that come before each.
struct Sorted {
  std::vector<float> x;
  std::vector<double> before;
  double square = 0;

  explicit Sorted(std::span<const float> values) : x(values.begin(), values.end()), before(1) {
    std::ranges::sort(x);
    for (const float value : x) {
      before.push_back(before.back() + static_cast<double>(value));
      square += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  // Squared error of rounding every value to the nearest subset sum.
  double error(const Line& line) const {
    std::array<float, 1 << kSums> sums;
    subset_sums(line, sums);
    std::ranges::sort(sums);
    double gain = 0;
    size_t first = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      size_t last = x.size();
      if (i + 1 < sums.size()) {
        const float middle = 0.5f * (sums[i] + sums[i + 1]);
        last = static_cast<size_t>(std::upper_bound(x.begin() + static_cast<std::ptrdiff_t>(first), x.end(), middle) -
                                   x.begin());
      }
      const double value = sums[i];
      gain += 2 * value * (before[last] - before[first]) - value * value * static_cast<double>(last - first);
      first = last;
    }
    return square - gain;
  }
};

std::vector<float> steps(float from, float to, int count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i)
    values[static_cast<size_t>(i)] = from + (to - from) * static_cast<float>(i) / static_cast<float>(count - 1);
  return values;
}

// The candidates of one group: a geometric family shifted by b, and a Cartesian one.
struct Candidates {
  std::vector<float> ratios, shifts, sizes;
  std::array<std::vector<float>, kSums> axes;

  Candidates(const Sorted& group, bool extended) {
    const auto denser = [&](int count) { return extended ? static_cast<int>(std::lround(count * 1.2)) : count; };
    const float low = group.x.front(), high = group.x.back();
    const auto mean = static_cast<float>(group.before.back() / static_cast<double>(group.x.size()));
    const float q95 = group.x[(group.x.size() - 1) * 95 / 100];
    constexpr float kPi = std::numbers::pi_v<float>;
    for (const float r : steps(kPi / 6, 0.94f, denser(32))) ratios.push_back(-r);
    for (const float r : steps(1.06f, 2 * kPi / 3, denser(32))) ratios.push_back(-r);
    const float most = std::max(2 * std::abs(mean) / kSums, 0.3f);
    // An odd number, so that no shift is among them: the floor of 0.3 makes all others useless for small weights.
    shifts = steps(-most, most, denser(40) | 1);
    sizes = steps(2 * q95, 1.1f * (high - low), denser(40));
    const std::vector<float> edges = steps(low, high, kSums + 1);
    for (size_t i = 0; i < kSums; ++i)
      axes[i] = steps(edges[i] - 0.8f * std::abs(edges[i]), edges[i + 1] + 0.8f * std::abs(edges[i + 1]), denser(20));
  }
  int64_t geometric() const { return static_cast<int64_t>(ratios.size() * shifts.size() * sizes.size()); }
  int64_t count() const {
    int64_t cartesian = 1;
    for (const auto& axis : axes) cartesian *= static_cast<int64_t>(axis.size());
    return geometric() + cartesian;
  }
  Line at(int64_t index) const {
    Line line{};
    if (index < geometric()) {
      auto rest = static_cast<size_t>(index);
      const float size = sizes[rest % sizes.size()];
      rest /= sizes.size();
      const float shift = shifts[rest % shifts.size()], ratio = ratios[rest / shifts.size()];
      float power = 1, positive = 0, negative = 0;
      for (float& c : line) {
        c = power;
        (power > 0 ? positive : negative) += power;
        power *= ratio;
      }
      for (float& c : line) c = shift + size * c / (positive - negative);
    } else {
      auto rest = static_cast<size_t>(index - geometric());
      for (size_t i = 0; i < kSums; ++i) {
        line[i] = axes[i][rest % axes[i].size()];
        rest /= axes[i].size();
      }
    }
    std::ranges::sort(line, [](float a, float b) { return std::abs(a) < std::abs(b); });
    for (float& c : line) c = f16::from_float(c).to_float();
    return line;
  }
};

struct Found {
  double error = HUGE_VAL;
  int64_t index = 0;
  void offer(double other, int64_t other_index) {
    if (other < error || (other == error && other_index < index)) error = other, index = other_index;
  }
};

// The least error of `count` candidates, the first of equals.
template <class LineAt>
Found least(const Sorted& group, int64_t count, ThreadPool& pool, const LineAt& line_at) {
  std::vector<Found> of_thread(static_cast<size_t>(pool.size()));
  pool.parallel_for(count, 256, [&](int64_t begin, int64_t end, int thread) {
    Found found;
    for (int64_t i = begin; i < end; ++i) found.offer(group.error(line_at(i)), i);
    of_thread[static_cast<size_t>(thread)] = found;
  });
  Found best;
  for (const Found& found : of_thread) best.offer(found.error, found.index);
  return best;
}

bool same(const Line& a, const Line& b) {
  double distance = 0, size = 0;
  for (size_t i = 0; i < kSums; ++i) {
    distance += std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    size += std::abs(static_cast<double>(a[i]));
  }
  return distance <= kSameLine * size;
}

// The lines of a matrix as its groups are visited.
struct Cache {
  std::vector<Line> lines;
  std::deque<double> recent;  // errors per weight of the last searched groups
  int64_t visited = 0, hits = 0;

  double cutoff() const {
    double sum = 0;
    for (const double error : recent) sum += error;
    return std::max(1e-12, kCutoff * sum / static_cast<double>(std::max<size_t>(1, recent.size())));
  }
  // The group's line.
  int64_t visit(const Sorted& group, ThreadPool& pool, AuthorsReport& report) {
    const auto size = static_cast<double>(group.x.size());
    const bool warm = static_cast<int64_t>(lines.size()) >= kWarmUp;
    const Found known = least(group, static_cast<int64_t>(lines.size()), pool,
                              [&](int64_t i) { return lines[static_cast<size_t>(i)]; });
    const double hit_rate = visited > 0 ? static_cast<double>(hits) / static_cast<double>(visited) : 0;
    ++visited;
    const bool full = static_cast<int64_t>(lines.size()) >= kMostLines;
    if (full || (warm && known.error / size < cutoff())) {
      ++hits;
      return known.index;
    }
    ++report.searched;
    const Candidates candidates(group, !warm || hit_rate > 0.6);
    const Found found = least(group, candidates.count(), pool, [&](int64_t i) { return candidates.at(i); });
    recent.push_back(std::min(found.error, known.error) / size);
    if (recent.size() > kRecent) recent.pop_front();
    if (found.error >= known.error) return known.index;
    const Line line = candidates.at(found.index);
    for (size_t i = 0; i < lines.size(); ++i)
      if (same(line, lines[i])) return static_cast<int64_t>(i);
    lines.push_back(line);
    return static_cast<int64_t>(lines.size()) - 1;
  }
};

}  // namespace

Result<QuantizedMatrix> encode_sbvr_authors(std::span<const float> w, int64_t n, int64_t k, ThreadPool& pool,
                                            AuthorsReport* report) {
  if (n <= 0 || k <= 0 || static_cast<int64_t>(w.size()) != n * k)
    return invalid_argument("SBVR: {} values for a weight [{}, {}]", w.size(), n, k);
  for (size_t i = 0; i < w.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    if (!std::isfinite(w[i])) return invalid_argument("SBVR: row {}, column {} is {}", at / k, at % k, w[i]);
  }
  AuthorsReport counted;
  Cache cache;
  QuantizedMatrix out;
  out.format = {.code = WeightCode::kBitvectors, .group_k = kGroup, .bitvectors = kSums, .act = ActFormat::kI8PerGroup};
  out.n = n;
  out.k = k;
  out.codes.resize(static_cast<size_t>(n * out.row_bytes()));
  for (int64_t row = 0; row < n; ++row) {
    const std::span<uint8_t> codes(out.codes.data() + row * out.row_bytes(), static_cast<size_t>(out.row_bytes()));
    for (int64_t begin = 0; begin < k; begin += kGroup) {
      const auto group =
          w.subspan(static_cast<size_t>(row * k + begin), static_cast<size_t>(std::min(kGroup, k - begin)));
      const int64_t index = cache.visit(Sorted(group), pool, counted);
      out.line_index.push_back(static_cast<uint16_t>(index));
      std::array<float, 1 << kSums> sums;
      subset_sums(cache.lines[static_cast<size_t>(index)], sums);
      for (size_t j = 0; j < group.size(); ++j) {
        const auto nearest = std::ranges::min_element(
            sums, [&](float a, float b) { return std::abs(a - group[j]) < std::abs(b - group[j]); });
        put_nibble(codes, begin + static_cast<int64_t>(j), static_cast<uint8_t>(nearest - sums.begin()));
      }
    }
  }
  out.format.lines = static_cast<int64_t>(cache.lines.size());
  for (const Line& line : cache.lines) out.lines.insert(out.lines.end(), line.begin(), line.end());
  if (report != nullptr) *report = counted;
  return out;
}

}  // namespace hearth
