// SPDX-License-Identifier: Apache-2.0
// linear for 4-bit weights with scales for groups of K on the tensor cores, straight from the canonical codes: a lane
// takes the 16 bytes of a row that hold 32 columns of a group of 128, and the same columns of x, in the order in which
// decoding brings them. Few rows go through the ring of linear_ring_sm90.cuh, more through
// linear_nibble_wide_sm90.h; what does not fit is linear_quantized_sm90's.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <bit>
#include <type_traits>

#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_nibble_wide_sm90.h"
#include "hearth/kernels/linear/linear_ring_sm90.cuh"
#include "hearth/kernels/linear/round_rows_sm90.h"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/wgmma.cuh"

namespace hearth {
namespace sm90 {
namespace {

constexpr int kGroup = 128;            // columns of a piece
constexpr int kRowBytes = kGroup / 2;  // of W in a piece
constexpr int kHighRow = 8 * kRowBytes;

__device__ __forceinline__ uint4 load_16(const std::byte* at) { return *reinterpret_cast<const uint4*>(at); }

// A lane's codes of rows r and r + 8.
struct Codes {
  uint32_t low[4], high[4];

  __device__ __forceinline__ explicit Codes(const std::byte* at) {
    const uint4 l = load_16(at), h = load_16(at + kHighRow);
    low[0] = l.x, low[1] = l.y, low[2] = l.z, low[3] = l.w;
    high[0] = h.x, high[1] = h.y, high[2] = h.z, high[3] = h.w;
  }
};

// What a lane needs of a piece: 32 neighbouring columns of W's rows r and r + 8 and of token r, 16 bytes of codes and
// twice 16 bytes of E4M3.
struct LaneE4m3 {
  int codes, first, second;
  __device__ __forceinline__ explicit LaneE4m3(int lane)
      : codes(keep(lane / 4 * kRowBytes + lane % 4 * 16)),
        first(keep(static_cast<int>(swizzled_offset(lane / 4, lane % 4 * 32)))),
        second(keep(first ^ 16)) {}
};

// Products of E4M3, as f16: what ptxas makes of mma_e4m3(), but with one chain of sums.
__device__ __forceinline__ void mma_widened(float (&sum)[4], uint32_t low, uint32_t high, uint32_t x) {
  const WidePairs l = widen_e4m3x4(low), h = widen_e4m3x4(high), wide_x = widen_e4m3x4(x);
  mma_f16(sum, {l.low, h.low, l.high, h.high}, wide_x.low, wide_x.high);
}

// Codes of a sign (bit 3) and three bits more, as E4M3.
//   kC4: the three bits are an index into kC4Levels of quantized_matrix.h.
//   else: a magnitude of 0 to 7, which as E4M3's lowest bits is that many times 2^-9. Even columns of a word come
//         first, then the odd ones.
template <bool kC4>
struct SignCodec {
  static constexpr int kRowBytes = sm90::kRowBytes, kTokenChunks = 1, kTeams = 2;
  static constexpr bool kHasGroups = true;
  static constexpr float kUnit = kC4 ? 1 : 512;
  using Lane = LaneE4m3;

  // Of a word's eight columns half and half.
  __device__ __forceinline__ static void decode(uint32_t codes, uint32_t& first, uint32_t& last) {
    if constexpr (kC4) {
      constexpr uint32_t kFirst = 0x38332D21, kLast = 0x44413E3B;  // 9/64, 13/32, 11/16, 1 and 11/8, 7/4, 9/4, 3
      const uint32_t index = codes & 0x77777777, raised = codes << 4;
      first = permute_bytes(kFirst, kLast, index) | (permute_bytes(raised, codes, 0x5140) & 0x80808080);
      last = permute_bytes(kFirst, kLast, index >> 16) | (permute_bytes(raised, codes, 0x7362) & 0x80808080);
    } else {
      first = (codes & 0x07070707) | (codes << 4 & 0x80808080);
      last = (codes >> 4 & 0x07070707) | (codes & 0x80808080);
    }
  }
  // The same of eight columns of x.
  __device__ __forceinline__ static void arrange(uint32_t low, uint32_t high, uint32_t& first, uint32_t& last) {
    first = kC4 ? low : permute_bytes(low, high, 0x6420);
    last = kC4 ? high : permute_bytes(low, high, 0x7531);
  }

  template <int kTiles>
  __device__ __forceinline__ static void multiply(const std::byte* weight, const std::byte* tokens, const Lane& lane,
                                                  const int (&)[2], float (&sum)[kTiles][4]) {
    const Codes codes(weight + lane.codes);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      uint32_t low[2][2], high[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        decode(codes.low[2 * c + i], low[i][0], low[i][1]);
        decode(codes.high[2 * c + i], high[i][0], high[i][1]);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 x = load_16(tokens + t * (kRingTileTokens * kChunkBytes) + (c == 0 ? lane.first : lane.second));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t first, last;
          arrange(i == 0 ? x.x : x.z, i == 0 ? x.y : x.w, first, last);
          mma_widened(sum[t], low[i][0], high[i][0], first);
          mma_widened(sum[t], low[i][1], high[i][1], last);
        }
      }
    }
  }
};

template <class Pair>
__device__ __forceinline__ Pair of_bits(uint32_t bits) {
  return *reinterpret_cast<Pair*>(&bits);
}
template <class Pair>
__device__ __forceinline__ uint32_t bits_of(Pair pair) {
  return *reinterpret_cast<uint32_t*>(&pair);
}

// Unsigned codes less a zero point: small integers, as f16 or bf16. A code in the lowest bits of 1024 in f16, or 128 in
// bf16, adds its value; taking away the same with the zero point is exact. Pairs are columns (0, 4), (1, 5), (2, 6) and
// (3, 7) of a word's eight.
template <bool kBf16>
__device__ __forceinline__ void decode_offset(uint32_t codes, uint32_t zero_pair, uint32_t (&pairs)[4]) {
  constexpr uint32_t kOne = kBf16 ? 0x43004300 : 0x64006400;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t raised = and_or(codes >> (4 * i), 0x000F000F, kOne);
    using Pair = std::conditional_t<kBf16, __nv_bfloat162, __half2>;
    pairs[i] = bits_of(__hsub2(of_bits<Pair>(raised), of_bits<Pair>(zero_pair)));
  }
}
template <bool kBf16>
__device__ __forceinline__ uint32_t zero_pair(int zero) {
  return static_cast<uint32_t>((kBf16 ? 0x4300 : 0x6400) | zero) * 0x00010001u;
}

// With activations of E4M3, which are f16 numbers too.
struct OffsetE4m3Codec {
  static constexpr int kRowBytes = sm90::kRowBytes, kTokenChunks = 1, kTeams = 2;
  static constexpr bool kHasGroups = true;
  static constexpr float kUnit = 1;
  using Lane = LaneE4m3;

  template <int kTiles>
  __device__ __forceinline__ static void multiply(const std::byte* weight, const std::byte* tokens, const Lane& lane,
                                                  const int (&zero)[2], float (&sum)[kTiles][4]) {
    const Codes codes(weight + lane.codes);
    const uint32_t zero_low = zero_pair<false>(zero[0]), zero_high = zero_pair<false>(zero[1]);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      uint4 x[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        x[t] = load_16(tokens + t * (kRingTileTokens * kChunkBytes) + (c == 0 ? lane.first : lane.second));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t low[4], high[4];
        decode_offset<false>(codes.low[2 * c + i], zero_low, low);
        decode_offset<false>(codes.high[2 * c + i], zero_high, high);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint32_t first = i == 0 ? x[t].x : x[t].z, last = i == 0 ? x[t].y : x[t].w;
          const WidePairs even = widen_e4m3x4(permute_bytes(first, last, 0x5140));
          const WidePairs odd = widen_e4m3x4(permute_bytes(first, last, 0x7362));
          mma_f16(sum[t], {low[0], high[0], low[1], high[1]}, even.low, even.high);
          mma_f16(sum[t], {low[2], high[2], low[3], high[3]}, odd.low, odd.high);
        }
      }
    }
  }
};

// With activations of bf16.
struct OffsetBf16Codec {
  static constexpr int kRowBytes = sm90::kRowBytes, kTokenChunks = 2, kTeams = 2;
  static constexpr bool kHasGroups = true;
  static constexpr float kUnit = 1;
  // The lane's columns of a token are half of a 128-byte chunk, the first or the second of the piece.
  struct Lane {
    int codes, chunk, at[4];
    __device__ __forceinline__ explicit Lane(int lane)
        : codes(keep(lane / 4 * kRowBytes + lane % 4 * 16)),
          chunk(keep(lane % 4 / 2 * (kRingTileTokens * kChunkBytes))) {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[i] = keep(static_cast<int>(swizzled_offset(lane / 4, lane % 2 * 64 + i * 16)));
    }
  };

  template <int kTiles>
  __device__ __forceinline__ static void multiply(const std::byte* weight, const std::byte* tokens, const Lane& lane,
                                                  const int (&zero)[2], float (&sum)[kTiles][4]) {
    const Codes codes(weight + lane.codes);
    const uint32_t zero_low = zero_pair<true>(zero[0]), zero_high = zero_pair<true>(zero[1]);
    const std::byte* const chunk = tokens + kTiles * lane.chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t low[4], high[4];
      decode_offset<true>(codes.low[i], zero_low, low);
      decode_offset<true>(codes.high[i], zero_high, high);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 x = load_16(chunk + t * (kRingTileTokens * kChunkBytes) + lane.at[i]);
        mma_bf16(sum[t], {low[0], high[0], low[1], high[1]}, permute_bytes(x.x, x.z, 0x5410),
                 permute_bytes(x.x, x.z, 0x7632));
        mma_bf16(sum[t], {low[2], high[2], low[3], high[3]}, permute_bytes(x.y, x.w, 0x5410),
                 permute_bytes(x.y, x.w, 0x7632));
      }
    }
  }
};

bool rounds_x(const WeightFormat& format) {
  return format.act == ActFormat::kE4m3PerToken || format.act == ActFormat::kE4m3Static;
}

// 128 columns, or a power of two times as many.
bool fits_group(int64_t group) { return group >= kGroup && std::has_single_bit(static_cast<uint64_t>(group)); }

bool in_vectors(const ConstTensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         (view.rows() == 1 || dtype_bytes(view.dtype, view.row_stride) % 16 == 0);
}

bool fits_weight(const LinearWeight& w) {
  return !w.k_order && w.k > 0 && w.k % kGroup == 0 && w.k < (int64_t{1} << 30) && w.n > 0 &&
         w.n < (int64_t{1} << 30) && in_vectors(w.codes) && ring_fits<OffsetBf16Codec>(w.scales.cols());
}

NarrowPart nibble_part(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  NarrowPart part = narrow_part(args);
  part.weight_scale = w.scales.data, part.weight_scale_step = static_cast<int>(w.scales.row_stride);
  part.weight_scale_dtype = w.format.scale_dtype;
  if (w.format.has_zero_point)
    part.zeros = static_cast<const uint8_t*>(w.zeros.data), part.zero_step = w.zeros.row_stride;
  return part;
}

Status start_nibble(const NarrowProduct& product, const WeightFormat& format, void* stream) {
  switch (format.code) {
    case WeightCode::kI4SignMagnitude: return start_ring<SignCodec<false>>(product, stream);
    case WeightCode::kC4: return start_ring<SignCodec<true>>(product, stream);
    default:
      return rounds_x(format) ? start_ring<OffsetE4m3Codec>(product, stream)
                              : start_ring<OffsetBf16Codec>(product, stream);
  }
}

// Several weights of one format and one x. REQUIRES: 1 <= m <= kNarrowMostRows, fits_weight() of each; x in vectors.
Status multiply_few(std::span<const LinearArgs> parts, const ConstTensorView& x, const float* x_scale, void* stream) {
  const LinearArgs& first = parts.front();
  NarrowProduct product = narrow_product(first);
  product.x = static_cast<const uint8_t*>(x.data);
  product.x_stride = dtype_bytes(x.dtype, x.row_stride);
  product.x_scale = x_scale;
  product.groups = static_cast<int>(first.weight->scales.cols());
  while (kGroup << product.group_shift < first.weight->format.group_k && product.group_shift < 24)
    ++product.group_shift;
  product.parts = static_cast<int>(parts.size());
  for (size_t i = 0; i < parts.size(); ++i) product.part[i] = nibble_part(parts[i]);
  return start_nibble(product, first.weight->format, stream);
}

}  // namespace
}  // namespace sm90

bool supports_linear_nibble_sm90(const WeightFormat& format, DType activation) {
  if (activation != DType::kBf16 || format.scale_layout != ScaleLayout::kGroup || !sm90::fits_group(format.group_k))
    return false;
  switch (format.code) {
    case WeightCode::kI4SignMagnitude:
    case WeightCode::kC4: return sm90::rounds_x(format);
    case WeightCode::kU4: return sm90::rounds_x(format) || format.act == ActFormat::kNative;
    default: return false;
  }
}

bool linear_nibble_sm90_takes_rounded(const LinearWeight& weight) {
  return supports_linear_nibble_sm90(weight.format, DType::kBf16) && sm90::rounds_x(weight.format) && !weight.k_order;
}

int64_t linear_nibble_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads) {
  return std::max({linear_quantized_sm90_workspace_bytes(m, n, k, threads), sm90::nibble_wide_workspace_bytes(m, n, k),
                   sm90::round_rows_bytes(std::min(m, sm90::kNarrowMostRows), k)});
}

Status linear_nibble_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearWeight& w = *args.weight;
  const int64_t m = args.x.shape[0];
  const bool is_rounded = args.x.dtype == DType::kE4m3;
  if (is_rounded && !linear_nibble_sm90_takes_rounded(w))
    return unsupported("linear: x of e4m3 for weights of format {}, wanted f32 or bf16", to_string(w.format));
  if (m > sm90::kNarrowMostRows && sm90::fits_nibble_wide(args)) return sm90::linear_nibble_wide_sm90(args, exec);
  const bool rounds = sm90::rounds_x(w.format) && !is_rounded;
  if (!supports_linear_nibble_sm90(w.format, is_rounded ? DType::kBf16 : args.x.dtype) || m == 0 ||
      m > sm90::kNarrowMostRows || !sm90::fits_weight(w) ||
      !(rounds ? sm90::can_round_rows(args.x) : sm90::in_vectors(args.x)))
    return linear_quantized_sm90(args, exec);
  sm90::RowsE4m3 x{args.x, static_cast<const float*>(args.x_scale.data)};
  if (rounds) {
    const int64_t wanted = linear_nibble_sm90_workspace_bytes(m, w.n, w.k, 1);
    if (static_cast<int64_t>(exec.workspace.size()) < wanted)
      return resource_exhausted("linear_nibble_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
    HEARTH_TRY_ASSIGN(x, sm90::round_rows(args.x, w, exec.workspace.data(), exec.stream));
  }
  return sm90::multiply_few({&args, 1}, x.codes, x.scale, exec.stream);
}

Status linear_nibble_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec) {
  if (parts.empty()) return {};
  for (const LinearArgs& args : parts) HEARTH_TRY(validate_on_device(args, RoundedX::kTaken));
  const LinearArgs& first = parts.front();
  const int64_t m = first.x.rows();
  const bool is_rounded = first.x.dtype == DType::kE4m3;
  bool together = parts.size() <= sm90::kNarrowMostParts && m >= 1 && m <= sm90::kNarrowMostRows &&
                  sm90::rounds_x(first.weight->format) == is_rounded && sm90::in_vectors(first.x);
  for (const LinearArgs& args : parts) {
    together = together && args.weight->format == first.weight->format &&
               supports_linear_nibble_sm90(args.weight->format, is_rounded ? DType::kBf16 : args.x.dtype) &&
               sm90::fits_weight(*args.weight);
  }
  if (!together) {
    for (const LinearArgs& args : parts) HEARTH_TRY(linear_nibble_sm90(args, exec));
    return {};
  }
  return sm90::multiply_few(parts, first.x, static_cast<const float*>(first.x_scale.data), exec.stream);
}

}  // namespace hearth
