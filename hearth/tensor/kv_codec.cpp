// SPDX-License-Identifier: Apache-2.0
// The KV formats' numbers (kv_codec.h). The 4-bit formats other than plain kInt4 look for the step, and kInt4Saw for the
// base too, that give the least squared error over the head: a few starting points, each moved to the least-squares
// fit of its own codes. Sums are over four lanes, in one order on every machine.
#include "hearth/tensor/kv_codec.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

namespace hearth {
namespace {

// Four floats that compilers keep in one register; a vector of the smallest size, since this is compiled for all CPUs.
using Lanes = float __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
float sum_of(Lanes v) { return (v[0] + v[2]) + (v[1] + v[3]); }

constexpr float kMaxF16 = 65504.0f;

template <class T>
T load(const std::byte* from, size_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  return value;
}
template <class T>
void store(std::byte* to, size_t index, T value) {
  std::memcpy(to + index * sizeof(T), &value, sizeof(T));
}

float rounded_f16(float value) { return f16::from_float(std::clamp(value, -kMaxF16, kMaxF16)).to_float(); }
// The next f16 above or below a finite one.
float next_f16(float value, bool up) {
  const uint16_t bits = f16::from_float(value).bits;
  if ((bits & 0x7FFF) == 0) return f16{static_cast<uint16_t>(up ? 0x0001 : 0x8001)}.to_float();
  const bool away = up == (bits < 0x8000);
  return f16{static_cast<uint16_t>(away ? bits + 1 : bits - 1)}.to_float();
}

// Levels offset + step * q for integers q of [low, high]; stored as q + bias.
struct Grid {
  float step = 0, offset = 0;
  float low = -7, high = 7;
  float bias = 8;
};

// The integer of [low, high] nearest to t: clamped first, so that the sum with 3 * 2^22 rounds to an integer, ties to
// even.
template <class T>
T nearest_code(T t, T low, T high) {
  constexpr float kRound = 12582912.0f;
  t = t > low ? t : low;
  t = t < high ? t : high;
  return (t + kRound) - kRound;
}

// Sums over a head and the codes that a grid gives it.
struct CodeSums {
  float error = 0, q = 0, qq = 0, qx = 0;
};

CodeSums measure(std::span<const float> x, const Grid& grid) {
  const float inverse_step = 1.0f / grid.step;
  const Lanes low = Lanes{} + grid.low, high = Lanes{} + grid.high;
  Lanes error{}, q_sum{}, qq{}, qx{};
  const auto add = [&](Lanes number) {
    const Lanes q = nearest_code((number - grid.offset) * inverse_step, low, high);
    const Lanes difference = q * grid.step + grid.offset - number;
    error += difference * difference;
    q_sum += q;
    qq += q * q;
    qx += q * number;
  };
  size_t i = 0;
  for (Lanes number; i + kLanes <= x.size(); i += kLanes) {
    std::memcpy(&number, &x[i], sizeof(number));
    add(number);
  }
  if (i < x.size()) {
    // The rest of the last vector has code 0 and no error: it adds nothing to any sum.
    Lanes number = Lanes{} + grid.offset;
    for (size_t lane = 0; i + lane < x.size(); ++lane) number[lane] = x[i + lane];
    add(number);
  }
  return {sum_of(error), sum_of(q_sum), sum_of(qq), sum_of(qx)};
}

// The best grid met, with its error.
struct Best {
  Grid grid;
  float error = std::numeric_limits<float>::infinity();

  CodeSums offer(std::span<const float> x, const Grid& other) {
    const CodeSums sums = measure(x, other);
    if (sums.error < error) {
      grid = other;
      error = sums.error;
    }
    return sums;
  }
};

struct Extent {
  float low = 0, high = 0, sum = 0;
  bool finite = true;
};

Extent extent_of(std::span<const float> x) {
  Extent e{x[0], x[0]};
  for (const float v : x) {
    e.low = std::min(e.low, v);
    e.high = std::max(e.high, v);
    e.sum += v;
    e.finite &= std::abs(v) <= FLT_MAX;
  }
  return e;
}

Grid plain_grid(const Extent& e) { return {.step = rounded_f16(std::max(-e.low, e.high) / 7)}; }

// kInt4Fireq: a step of either sign, which decides what end has the eighth level. Measured as below, without channel
// scales: 0.73 with the two starts at -8, 0.667 as here, 0.68 with seventeen starts and five passes.
Grid signed_grid(std::span<const float> x, const Extent& e) {
  Best best{plain_grid(e)};
  if (best.grid.step == 0) return best.grid;
  best.offer(x, best.grid);
  const float largest = std::max(-e.low, e.high), sign = -e.low > e.high ? 1.0f : -1.0f;
  // The first start reaches the largest number at -8; the others cut off more and more.
  for (const float levels : {8.0f, 8.5f, 9.5f, -8.0f, -9.5f}) {
    Grid grid{.step = rounded_f16(sign * largest / levels), .low = -8};
    for (int pass = 0; pass < 2 && grid.step != 0; ++pass) {
      const CodeSums sums = best.offer(x, grid);
      grid.step = rounded_f16(sums.qq > 0 ? sums.qx / sums.qq : 0);
    }
  }
  return best.grid;
}

// kInt4Saw: covers the extent exactly at first. KL to f32 KV of fable-82m on six windows of 512 tokens of held-out books,
// as a share of kInt4's: 0.342 without search, 0.313 with one start, 0.299 with three and two passes, 0.294 as here, 0.290
// with seven and five passes.
Grid affine_grid(std::span<const float> x, const Extent& e) {
  constexpr int kPasses = 3;
  const float count = static_cast<float>(x.size());
  Grid grid{.low = 0, .high = 15, .bias = 0};
  grid.offset = rounded_f16(e.low);
  if (grid.offset > e.low && grid.offset > -kMaxF16) grid.offset = next_f16(grid.offset, false);
  const float wanted = std::max(e.high - grid.offset, 1e-8f) / 15;
  grid.step = rounded_f16(wanted);
  if (grid.step < wanted && grid.step < kMaxF16) grid.step = next_f16(grid.step, true);
  const Grid whole = grid;
  Best best{whole};
  for (const float cut : {0.0f, 0.5f, 1.0f, 2.0f}) {  // steps cut off at either end
    grid.step = rounded_f16(whole.step * (15 - 2 * cut) / 15);
    grid.offset = rounded_f16(whole.offset + cut * whole.step);
    for (int pass = 0; pass <= kPasses && grid.step > 0; ++pass) {
      const CodeSums sums = best.offer(x, grid);
      const float spread = count * sums.qq - sums.q * sums.q;
      if (!(spread > 0)) break;
      grid.step = rounded_f16((count * sums.qx - sums.q * e.sum) / spread);
      grid.offset = rounded_f16((e.sum - grid.step * sums.q) / count);
    }
  }
  return best.grid;
}

void store_codes(std::span<const float> x, const Grid& g, std::byte* to) {
  const Grid grid = g;
  uint8_t codes[KvLayout::kMaxCodedHeadDim];
  // A quotient here, not a product: the levels' midpoints are where the format says that they are.
  for (size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<uint8_t>(
        static_cast<int>(nearest_code((x[i] - grid.offset) / grid.step, grid.low, grid.high) + grid.bias));
  for (size_t i = 0; i < x.size() / 2; ++i) to[i] = static_cast<std::byte>(codes[2 * i] | codes[2 * i + 1] << 4);
}

void store_int4(KvFormatId format, std::span<const float> x, std::byte* codes, std::byte* scales) {
  const bool affine = format == KvFormatId::kInt4Saw;
  const Extent e = extent_of(x);
  Grid grid;
  if (e.finite)
    grid = format == KvFormatId::kInt4 ? plain_grid(e) : affine ? affine_grid(x, e) : signed_grid(x, e);
  else
    grid.step = grid.offset = NAN;
  store(scales, 0, f16::from_float(grid.step));
  if (affine) store(scales, 1, f16::from_float(grid.offset));
  if (e.finite && grid.step != 0)
    store_codes(x, grid, codes);
  else
    std::memset(codes, 0x88, x.size() / 2);
}

}  // namespace

void store_kv_head(KvFormatId format, std::span<const float> x, float scale, std::byte* codes, std::byte* scales) {
  switch (format) {
    case KvFormatId::kF32: std::memcpy(codes, x.data(), x.size_bytes()); return;
    case KvFormatId::kBf16:
      for (size_t i = 0; i < x.size(); ++i) store(codes, i, bf16::from_float(x[i]));
      return;
    case KvFormatId::kFp8:
      for (size_t i = 0; i < x.size(); ++i) store(codes, i, e4m3::from_float(x[i] / scale));
      return;
    case KvFormatId::kInt4:
    case KvFormatId::kInt4Fireq:
    case KvFormatId::kInt4Saw: return store_int4(format, x, codes, scales);
  }
}

KvSteps load_kv_steps(KvFormatId format, const std::byte* scales) {
  const float step = load<f16>(scales, 0).to_float();
  return {step, format == KvFormatId::kInt4Saw ? load<f16>(scales, 1).to_float() : -8 * step};
}

void load_kv_head(KvFormatId format, const std::byte* codes, const std::byte* scales, float scale, std::span<float> x) {
  switch (format) {
    case KvFormatId::kF32: std::memcpy(x.data(), codes, x.size_bytes()); return;
    case KvFormatId::kBf16:
      for (size_t i = 0; i < x.size(); ++i) x[i] = load<bf16>(codes, i).to_float();
      return;
    case KvFormatId::kFp8:
      for (size_t i = 0; i < x.size(); ++i) x[i] = load<e4m3>(codes, i).to_float() * scale;
      return;
    case KvFormatId::kInt4:
    case KvFormatId::kInt4Fireq:
    case KvFormatId::kInt4Saw: {
      const KvSteps steps = load_kv_steps(format, scales);
      for (size_t i = 0; i < x.size(); ++i) {
        const unsigned code = static_cast<unsigned>(codes[i / 2]) >> i % 2 * 4 & 15;
        x[i] = static_cast<float>(code) * steps.step + steps.base;
      }
    }
  }
}

}  // namespace hearth
