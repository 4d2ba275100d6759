// SPDX-License-Identifier: Apache-2.0
// A tensor's bytes are a row of 32-bit words, each a hash of its place under a key of 64 bits, made in place into one,
// two, four or eight values.
#include "hearth/model/dummy_values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/model/dummy_values.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

using WordTag = hn::ScalableTag<uint32_t>;

// Words [first, first + count) of a block under its two keys: two rounds of multiply and shift, with the constants of
// Wellons' search for hashes of 32 bits with little bias, the second key between them. `out` takes whole vectors.
void dummy_words(uint32_t key_0, uint32_t key_1, uint32_t first, int64_t count, uint32_t* HWY_RESTRICT out) {
  const WordTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto multiplier_0 = hn::Set(d, 0x7FEB352D), multiplier_1 = hn::Set(d, 0x846CA68B);
  const auto key = hn::Set(d, key_1), step = hn::Set(d, static_cast<uint32_t>(lanes));
  auto place = hn::Iota(d, first + key_0);
  for (int64_t i = 0; i < count; i += lanes) {
    auto word = hn::Xor(place, hn::ShiftRight<16>(place));
    word = hn::Add(hn::Mul(word, multiplier_0), key);
    word = hn::Xor(word, hn::ShiftRight<15>(word));
    word = hn::Mul(word, multiplier_1);
    word = hn::Xor(word, hn::ShiftRight<16>(word));
    hn::StoreU(word, d, out + i);
    place = hn::Add(place, step);
  }
}

// Each word to two bf16, in place: its halves are integers of 16 bits, times `unit`.
void dummy_bf16(float unit, int64_t count, uint32_t* words) {
  const WordTag du;
  const hn::RebindToSigned<WordTag> di;
  const hn::RebindToFloat<WordTag> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  const auto scale = hn::Set(df, 0.5f * unit);
  const auto odd = hn::Set(di, 1);  // halves lie between whole numbers, as many above 0 as below
  for (int64_t i = 0; i < count; i += lanes) {
    const auto word = hn::BitCast(di, hn::LoadU(du, words + i));
    const auto low = hn::ConvertTo(df, hn::Or(hn::ShiftRight<15>(hn::ShiftLeft<16>(word)), odd));
    const auto high = hn::ConvertTo(df, hn::Or(hn::ShiftRight<15>(word), odd));
    const auto low_bits = hn::BitCast(du, round_to_bf16(df, hn::Mul(low, scale)));
    const auto high_bits = hn::BitCast(du, round_to_bf16(df, hn::Mul(high, scale)));
    hn::StoreU(hn::Or(hn::ShiftRight<16>(low_bits), high_bits), du, words + i);
  }
}

// Each byte of the words to the E4M3 code of one of 256 values spread evenly over (-448, 448): a sign, and (m + 1/2)
// 3.5 of its other seven bits, rounded to three bits of mantissa, ties to even. All are normal, and the largest is 448.
void dummy_e4m3(int64_t count, uint32_t* words) {
  const WordTag du;
  const hn::RebindToSigned<WordTag> di;
  const hn::RebindToFloat<WordTag> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  const auto seven_bits = hn::Set(du, 0x7F), odd = hn::Set(du, 1), below_half = hn::Set(du, 0x7FFFF);
  const auto bias = hn::Set(du, (127 - 7) << 3);
  const auto scale = hn::Set(df, 1.75f);
  const auto code = [&](auto byte) HWY_ATTR {
    const auto twice = hn::Or(hn::Add(byte, byte), odd);
    const auto value = hn::BitCast(du, hn::Mul(hn::ConvertTo(df, hn::BitCast(di, twice)), scale));
    const auto even = hn::And(hn::ShiftRight<20>(value), odd);
    return hn::Sub(hn::ShiftRight<20>(hn::Add(hn::Add(value, below_half), even)), bias);
  };
  for (int64_t i = 0; i < count; i += lanes) {
    const auto word = hn::LoadU(du, words + i);
    auto codes = hn::And(word, hn::Set(du, 0x80808080));
    codes = hn::Or(codes, code(hn::And(word, seven_bits)));
    codes = hn::Or(codes, hn::ShiftLeft<8>(code(hn::And(hn::ShiftRight<8>(word), seven_bits))));
    codes = hn::Or(codes, hn::ShiftLeft<16>(code(hn::And(hn::ShiftRight<16>(word), seven_bits))));
    codes = hn::Or(codes, hn::ShiftLeft<24>(code(hn::And(hn::ShiftRight<24>(word), seven_bits))));
    hn::StoreU(codes, du, words + i);
  }
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {

HWY_EXPORT(dummy_words);
HWY_EXPORT(dummy_bf16);
HWY_EXPORT(dummy_e4m3);

// FNV-1a.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

// The finaliser of SplitMix64.
uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

// Uniform on (-a, a) has a standard deviation of a / sqrt(3).
const float kWidth = kDummyDeviation * std::sqrt(3.0f);

// Words of a block of 2^22: a tensor's block has keys of its own.
constexpr int kBlockBits = 22;

// Whole words of the stream, made into values in place. `words` takes whole vectors.
void make_words(const DummyStream& stream, int64_t first, int64_t count, uint32_t* words) {
  const uint64_t key = mixed(stream.key + static_cast<uint64_t>(first >> kBlockBits) * 0x9E3779B97F4A7C15);
  const auto in_block = static_cast<uint32_t>(first & ((int64_t{1} << kBlockBits) - 1));
  HWY_DYNAMIC_DISPATCH(dummy_words)
  (static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), in_block, count, words);
  auto* const bytes = reinterpret_cast<uint8_t*>(words);
  const auto size = static_cast<size_t>(count);
  switch (stream.kind) {
    case DummyKind::kBf16: HWY_DYNAMIC_DISPATCH(dummy_bf16)(kWidth * 0x1p-15f, count, words); return;
    case DummyKind::kF32:
      for (size_t i = 0; i < size; ++i) {
        const float value = static_cast<float>(static_cast<int32_t>(words[i])) * (kWidth * 0x1p-31f);
        std::memcpy(words + i, &value, sizeof(value));
      }
      return;
    case DummyKind::kF16:
      for (size_t i = 0; i < 2 * size; ++i) {
        int16_t half = 0;
        std::memcpy(&half, bytes + 2 * i, sizeof(half));
        const f16 value = f16::from_float((static_cast<float>(half) + 0.5f) * (kWidth * 0x1p-15f));
        std::memcpy(bytes + 2 * i, &value, sizeof(value));
      }
      return;
    case DummyKind::kE4m3: HWY_DYNAMIC_DISPATCH(dummy_e4m3)(count, words); return;
    case DummyKind::kNibbles:
    case DummyKind::kBytes: {
      const uint32_t code = (1u << stream.bits) - 1;
      const uint32_t mask = (stream.kind == DummyKind::kNibbles ? code * 0x11 : code) * 0x01010101;
      for (size_t i = 0; i < size; ++i) words[i] &= mask;
      return;
    }
  }
}

// The uniform numbers on [-1, 1] of stream `name`.
std::vector<float> uniform(uint64_t seed, const std::string& name, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  DummyStream::make(seed, name, DummyKind::kF32).fill(0, std::as_writable_bytes(std::span(values)));
  for (float& value : values) value /= kWidth;
  return values;
}

float stored_as(DType dtype, float value) {
  switch (dtype) {
    case DType::kF16: return f16::from_float(value).to_float();
    case DType::kBf16: return bf16::from_float(value).to_float();
    // Its smallest number rather than none.
    case DType::kE4m3: return e4m3::from_float(std::max(value, 0x1p-9f)).to_float();
    default: return value;
  }
}

double root_mean_square(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

// What the codes of dummy_codes() decode to has this deviation. Not of bitvectors.
double code_deviation(const WeightFormat& format) {
  std::vector<float> values;
  if (format.code == WeightCode::kE4m3) {
    for (int magnitude = 0; magnitude < 128; ++magnitude)
      values.push_back(e4m3::from_float((static_cast<float>(magnitude) + 0.5f) * 3.5f).to_float());
  } else {
    for (const float value : code_values(format.code)) {
      values.push_back(format.code == WeightCode::kU4 ? value - 8 : value);
      if (format.has_zero_point) values.push_back(value - 7);
    }
  }
  return root_mean_square(values);
}

// Lines like the places of a binary number and their negative sum, stretched by different factors: their subset sums
// have mean 0, and deviation `deviation`.
void make_lines(uint64_t seed, const std::string& module, double deviation, QuantizedMatrix& matrix) {
  const WeightFormat& format = matrix.format;
  const int sums = format.bitvectors;
  const auto width = static_cast<size_t>(sums);
  const std::vector<float> factors = uniform(seed, module + ".lines", format.lines);
  std::vector<float> line(width), values(size_t{1} << sums);
  for (const float factor : factors) {
    const double most = 127 * (0.75 + 0.25 * static_cast<double>(factor));
    line[0] = 0;
    for (int s = 1; s < sums; ++s) {
      line[static_cast<size_t>(s)] = static_cast<float>(std::round(most / (1 << s)));
      line[0] -= line[static_cast<size_t>(s)];
    }
    subset_sums(line, values);
    const auto unit = static_cast<float>(deviation / root_mean_square(values));
    if (format.integer_lines) {
      matrix.line_scales.push_back(stored_as(DType::kF16, unit));
    } else {
      for (float& coefficient : line) coefficient = stored_as(DType::kF16, coefficient * unit);
    }
    matrix.lines.insert(matrix.lines.end(), line.begin(), line.end());
  }
  const int64_t groups = (matrix.k + format.group_k - 1) / format.group_k;
  std::vector<uint16_t> places(static_cast<size_t>(matrix.n * groups));
  DummyStream::make(seed, module + ".line_index", DummyKind::kBytes).fill(0, std::as_writable_bytes(std::span(places)));
  for (uint16_t& place : places) place = static_cast<uint16_t>(place * format.lines >> 16);
  matrix.line_index = std::move(places);
}

}  // namespace

DummyStream DummyStream::make(uint64_t seed, std::string_view tensor, DummyKind kind, int bits) {
  return {mixed(seed + 0x9E3779B97F4A7C15) ^ hash_name(tensor), kind, bits};
}

void DummyStream::fill(int64_t begin, std::span<std::byte> dst) const {
  // A piece stays in the first cache, and divides a block.
  constexpr int64_t kPiece = 1024;
  std::array<uint32_t, kPiece> words;
  const int64_t end = begin + std::ssize(dst);
  for (int64_t at = begin; at < end;) {
    const int64_t first = at / 4, count = std::min(kPiece - first % kPiece, (end + 3) / 4 - first);
    make_words(*this, first, count, words.data());
    const int64_t until = std::min(end, (first + count) * 4);
    std::memcpy(dst.data() + (at - begin), reinterpret_cast<const std::byte*>(words.data()) + at % 4,
                static_cast<size_t>(until - at));
    at = until;
  }
}

DummyStream dummy_codes(uint64_t seed, std::string_view module, const WeightFormat& format) {
  const std::string name = std::string(module) + ".codes";
  if (format.code == WeightCode::kE4m3) return DummyStream::make(seed, name, DummyKind::kE4m3);
  const auto bits = static_cast<int>(format.code_bits());
  return DummyStream::make(seed, name, bits > 4 ? DummyKind::kBytes : DummyKind::kNibbles, bits);
}

QuantizedMatrix dummy_parts(uint64_t seed, std::string_view module, const WeightFormat& format, int64_t n, int64_t k) {
  QuantizedMatrix matrix{.format = format, .n = n, .k = k};
  const std::string name(module);
  const bool scaled = format.scale_layout != ScaleLayout::kNone;
  const double wanted = static_cast<double>(kDummyDeviation);
  double deviation = 1;
  if (format.code == WeightCode::kBitvectors) {
    make_lines(seed, name, scaled ? 1 : wanted, matrix);
  } else {
    deviation = code_deviation(format);
  }
  if (scaled) {
    const auto usual = static_cast<float>(wanted / deviation);
    matrix.scales = uniform(seed, name + ".scales", format.scale_count(n, k));
    for (float& scale : matrix.scales) scale = stored_as(format.scale_dtype, usual * (1 + 0.25f * scale));
  }
  if (format.has_zero_point) {
    matrix.zeros.resize(matrix.scales.size());
    DummyStream::make(seed, name + ".zeros", DummyKind::kBytes, 1)
        .fill(0, std::as_writable_bytes(std::span(matrix.zeros)));
    for (uint8_t& zero : matrix.zeros) zero = static_cast<uint8_t>(zero + 7);
  }
  // Activations up to 16.
  if (format.act == ActFormat::kE4m3Static) matrix.act_scale = 16.0f / 448;
  return matrix;
}

}  // namespace hearth
#endif  // HWY_ONCE
