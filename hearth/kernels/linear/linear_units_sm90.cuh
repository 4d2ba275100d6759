// SPDX-License-Identifier: Apache-2.0
// The kernel of linear_units_sm90.h. A block a multiprocessor; its teams of eight warps take strips of 16 rows of W in
// turns, W as the M side of the MMA and tokens the N side.
//   A warp has its own part of every strip and of shared memory, a ring of pieces of some units, which its lane 0 fills
//     by the copy engine; the first ones are asked for before the kernels in front have ended. Nobody else waits for it.
//   x lies in shared memory, all of it, as f16 in the lanes' order; or where that is too large in
//     rows as it comes, and where these are too large, too, a slab of K after the other.
//   Another warp ends a team's strips: adds the eight warps' sums in the order of the warps, and writes.
// K's segments of 32 units are split evenly over the warps of a team, whatever m is.
#pragma once

#include <algorithm>

#include "hearth/kernels/linear/linear_decode_sm90.cuh"
#include "hearth/kernels/linear/linear_units_codecs_sm90.cuh"
#include "hearth/kernels/linear/linear_units_sm90.h"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/mbarrier.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/tma.cuh"

namespace hearth::sm90 {

constexpr int kUnitTeamWarps = 8;
constexpr int kUnitMostTeams = 3;
constexpr int kUnitTokens = 8;  // of an MMA's output
constexpr int kUnitMostSlots = 8;
constexpr int kUnitSegment = 32;  // units of K: 4 for each warp of a team
constexpr int kUnitSumStride = kUnitRows + 1;
constexpr int kUnitSharedBytes = 227 * 1024 - kSharedLeft;  // of a block, barriers included
constexpr int kUnitKept = 4;                                // times 8 columns of x that a thread rounds

struct UnitsPart {
  const uint8_t* units;
  int n, first_strip;
  const void *bias, *residual;  // or null; the residual of out's type
  void* out;
  int64_t residual_stride, out_stride;  // elements
  DType bias_dtype, out_dtype;
};

// How x comes.
enum class UnitsX : uint8_t {
  kAsIs,       // as it is multiplied: E4M3 with scales, or bf16
  kToRound,    // bf16, to be rounded with a scale of its own for each token
  kToRoundBy,  // bf16, to be rounded with one scale
};

struct UnitsParams {
  UnitsPart part[kUnitsMostParts];
  int parts, strips;
  int m, unit_columns;  // of K
  int unit_bytes;
  DType scale_dtype;
  bool has_zeros;
  UnitsX x_form;
  const void* x;  // [m, k], rows x_stride bytes apart
  int64_t x_stride;
  const float* x_scale;  // of row r at r; kToRoundBy: one
  int slab_units;        // of K, whose x is in shared memory at once: segments, or all
  int piece, slots;
  int ring_warps;  // that have strips
};

// Shared memory: the warps' rings, x, the teams' sums.
// kRows: x is there in rows, as it comes.
template <class Codec, int kTiles, bool kRows>
struct UnitsShape {
  static constexpr int kTokens = kTiles * kUnitTokens;
  static constexpr int kTeams = kTiles == 1 ? kUnitMostTeams : 2;  // three have no registers for 16 tokens
  static constexpr int kWarps = kTeams * kUnitTeamWarps, kMultipliers = 32 * kWarps;
  static constexpr int kThreads = kMultipliers + 32 * kTeams;              // a warp for each team ends strips
  static constexpr int kSums = kUnitTeamWarps * kTokens * kUnitSumStride;  // of a team
  static constexpr int kSumBytes = kTeams * kSums * 4;
  static constexpr int kUnitXBytes = kUnitColumns * (kRows && !Codec::kBf16 ? 1 : 2);
  // Of a token in rows: different tokens lie on different banks.
  HEARTH_HOST_DEVICE static constexpr int row_bytes(int units) { return units * kUnitXBytes + 16; }
  HEARTH_HOST_DEVICE static constexpr int x_bytes(int units, int m) {
    return m * (kRows ? row_bytes(units) : units * kUnitXBytes);
  }
};

// What a warp asks for next: units [unit, end) of a strip, whose units begin at `from`, in the segment that begins at
// unit `segment` of K.
struct UnitsAsked {
  int strip, segment, unit, end;
  const uint8_t* from;
};

struct UnitsBarriers {
  static constexpr int kWarps = kUnitMostTeams * kUnitTeamWarps;
  MBarrier full[kWarps][kUnitMostSlots];  // a warp's piece is there: its lane 0, and the bytes
  MBarrier sums_full[kUnitMostTeams];     // a team's sums are there: its threads arrive
  MBarrier sums_empty[kUnitMostTeams];    // and have been read: the warp that ends strips arrives
  UnitsAsked asked[kWarps];               // a warp's lane 0's
  MBarrier x_full;                        // a slab of x in rows is there: one thread, and the bytes
};

template <class Codec, int kTiles, bool kRows>
class UnitsBlock {
 public:
  using Shape = UnitsShape<Codec, kTiles, kRows>;

  __device__ UnitsBlock(const UnitsParams& p, std::byte* shared, UnitsBarriers& barriers, uint32_t* largest)
      : p_(p),
        barriers_(barriers),
        largest_(largest),
        ring_(shared),
        x_(shared + p.ring_warps * p.slots * p.piece * p.unit_bytes),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  // Lane 0 of a multiplying warp.
  __device__ void begin_copies() {
    for (int i = 0; i < p_.slots; ++i) barriers_.full[warp_][i].init(1);
    fence_barrier_init();
    UnitsAsked& asked = barriers_.asked[warp_];
    asked.strip = first_strip(), asked.segment = 0;
    enter(asked);
    skip_empty(asked);
    for (int i = 0; i < p_.slots; ++i) ask(i, 0);
  }

  // The multipliers, behind pdl_wait() and before a barrier of the block. Rows: the first slab is only asked for.
  __device__ void bring_x() {
    if (p_.x_form != UnitsX::kAsIs) {
      if constexpr (!Codec::kBf16 && kTiles == 1) round_x();
    } else if constexpr (kRows) {
      if (threadIdx.x == 0) ask_rows(0);
    } else {
      place_rows();
    }
  }

  __device__ void multiply() {
    const int row = lane_ / 4;
    int x_lane[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int token = row + t * kUnitTokens;  // one that does not exist: whatever it gives is not written
      x_lane[t] = kRows ? (token < p_.m ? token : 0) * Shape::row_bytes(p_.slab_units) + lane_ % 4 * 4
                        : (token < p_.m ? token : 0) * 64 + lane_ % 4 * 16;
    }
    int x_parity = 0;
    int slot = 0, parities = 2;  // of the slot, of sums_empty
    for (int strip = first_strip(); strip - team() * static_cast<int>(gridDim.x) < p_.strips; strip += strip_step()) {
      float total[kTiles][4] = {};
      for (int slab = 0; slab < p_.unit_columns; slab += p_.slab_units) {
        const int slab_end = min(slab + p_.slab_units, p_.unit_columns);
        if (kRows && p_.x_form == UnitsX::kAsIs) {
          // The first slab of all is asked for, and stays where it is the only one.
          const bool is_new = p_.slab_units < p_.unit_columns || strip == first_strip();
          if (is_new && (slab > 0 || strip != first_strip())) {
            named_barrier(1, Shape::kMultipliers);
            if (threadIdx.x == 0) ask_rows(slab);
          }
          if (is_new) barriers_.x_full.wait(x_parity), x_parity ^= 1;
        }
        if (strip >= p_.strips) continue;
        for (int segment = slab; segment < slab_end; segment += kUnitSegment) {
          int unit, end;
          share_of(segment, unit, end);
          for (; unit < end; unit += p_.piece) {
            multiply_piece(x_ + (unit - slab) * x_step(), min(p_.piece, end - unit), x_lane, slot, parities & 1, total);
            if (++slot == p_.slots) slot = 0, parities ^= 1;
          }
        }
      }
      if (strip >= p_.strips) break;
      barriers_.sums_empty[team()].wait(parities >> 1);
      parities ^= 2;
      leave(total);
      barriers_.sums_full[team()].arrive();
    }
  }

  // The warp that ends the strips of team `team`.
  __device__ void end_strips(int team) {
    constexpr int kElements = Shape::kTokens / 2;
    const int first_token = lane_ / kUnitRows, row_in_strip = lane_ % kUnitRows;
    float x_scale[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) x_scale[i] = Codec::kUnit * x_scale_of(first_token + 2 * i);
    int parity = 0;
    for (int strip = static_cast<int>(blockIdx.x) + team * static_cast<int>(gridDim.x); strip < p_.strips;
         strip += strip_step(), parity ^= 1) {
      const UnitsPart& part = part_of(strip);
      const int row = (strip - part.first_strip) * kUnitRows + row_in_strip;
      const auto writes = [&](int i) { return first_token + 2 * i < p_.m && row < part.n; };
      // Asked for now, needed after the strip's last unit.
      uint32_t bias = 0, residual[kElements] = {};
      if (part.bias != nullptr && writes(0)) bias = stored_at(part.bias, part.bias_dtype, row);
#pragma unroll
      for (int i = 0; i < kElements; ++i)
        if (part.residual != nullptr && writes(i))
          residual[i] = stored_at(part.residual, part.out_dtype, (first_token + 2 * i) * part.residual_stride + row);
      barriers_.sums_full[team].wait(parity);
      const float* const sums = sums_of(team);
      float y[kElements] = {};
#pragma unroll
      for (int w = 0; w < kUnitTeamWarps; ++w)
#pragma unroll
        for (int i = 0; i < kElements; ++i)
          y[i] += sums[(w * Shape::kTokens + first_token + 2 * i) * kUnitSumStride + row_in_strip];
      uint32_t outcome = 0;
#pragma unroll
      for (int i = 0; i < kElements; ++i) outcome |= __float_as_uint(y[i]);
      barriers_.sums_empty[team].arrive_behind_loads(outcome);
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (!writes(i)) continue;
        y[i] *= x_scale[i];
        if (part.bias != nullptr) y[i] += value_of_stored(bias, part.bias_dtype);
        if (part.residual != nullptr) y[i] += value_of_stored(residual[i], part.out_dtype);
        const int64_t at = (first_token + 2 * i) * part.out_stride + row;
        if (part.out_dtype == DType::kF32) {
          static_cast<float*>(part.out)[at] = y[i];
        } else {
          static_cast<__nv_bfloat16*>(part.out)[at] = __float2bfloat16_rn(y[i]);
        }
      }
    }
  }

 private:
  static constexpr int kXColumns = 32;  // of a block of x, four lanes'

  __device__ __forceinline__ int team() const { return warp_ / kUnitTeamWarps; }
  __device__ __forceinline__ int first_strip() const {
    return static_cast<int>(blockIdx.x) + team() * static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ static int strip_step() { return Shape::kTeams * static_cast<int>(gridDim.x); }
  __device__ __forceinline__ float* sums_of(int team) const {
    return reinterpret_cast<float*>(x_ + Shape::x_bytes(p_.slab_units, p_.m)) + team * Shape::kSums;
  }
  __device__ __forceinline__ const UnitsPart& part_of(int strip) const {
    int part = 0;
    while (part + 1 < p_.parts && strip >= p_.part[part + 1].first_strip) ++part;
    return p_.part[part];
  }

  // The warp's units of the segment that begins at unit `segment`: [unit, end).
  __device__ __forceinline__ void share_of(int segment, int& unit, int& end) const {
    const int units = min(kUnitSegment, p_.unit_columns - segment);
    const int each = static_cast<int>(static_cast<unsigned>(units + kUnitTeamWarps - 1) / kUnitTeamWarps);
    const int first = warp_ % kUnitTeamWarps * each;
    unit = segment + first, end = segment + min(first + each, units);
  }

  __device__ __forceinline__ void enter(UnitsAsked& asked) const {
    if (asked.strip >= p_.strips) return;
    const UnitsPart& part = part_of(asked.strip);
    asked.from = part.units + int64_t{asked.strip - part.first_strip} * p_.unit_columns * p_.unit_bytes;
    share_of(0, asked.unit, asked.end);
  }
  // To the next segment of which the warp has units.
  __device__ __forceinline__ void skip_empty(UnitsAsked& asked) const {
    while (asked.unit >= asked.end && asked.strip < p_.strips) {
      asked.segment += kUnitSegment;
      if (asked.segment < p_.unit_columns) {
        share_of(asked.segment, asked.unit, asked.end);
      } else {
        asked.segment = 0, asked.strip += strip_step();
        enter(asked);
      }
    }
  }

  __device__ __forceinline__ std::byte* slot_at(int slot) const {
    return ring_ + (warp_ * p_.slots + slot) * p_.piece * p_.unit_bytes;
  }
  // Lane 0. `behind`: 0, that depends on what was loaded from the slot before.
  __device__ __forceinline__ void ask(int slot, uint32_t behind) {
    UnitsAsked& asked = barriers_.asked[warp_];
    if (asked.strip >= p_.strips) return;
    const int unit = asked.unit, bytes = min(p_.piece, asked.end - unit) * p_.unit_bytes;
    MBarrier& full = barriers_.full[warp_][slot];
    full.arrive_and_expect(bytes);
    copy_bulk_once(slot_at(slot) + behind, asked.from + unit * p_.unit_bytes, bytes, full);
    asked.unit = unit + p_.piece;
    if (unit + p_.piece >= asked.end) skip_empty(asked);
  }

  // `count` units, which lie in `slot`, by x.
  __device__ __forceinline__ void multiply_piece(const std::byte* x, int count, const int (&x_lane)[kTiles], int slot,
                                                 int parity, float (&total)[kTiles][4]) {
    const std::byte* unit = slot_at(slot);
    barriers_.full[warp_][slot].wait(parity);
#pragma unroll(kTiles == 1 ? 2 : 1)
    for (int i = 0; i < count; ++i, unit += p_.unit_bytes, x += x_step()) multiply_unit(unit, x, x_lane, total);
    uint32_t outcome = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) outcome |= __float_as_uint(total[t][i]);
    __syncwarp();
    if (lane_ == 0) ask(slot, outcome & threadIdx.z);  // our blocks have one dimension; ptxas does not know it
  }

  __device__ __forceinline__ void multiply_unit(const std::byte* unit, const std::byte* x, const int (&x_lane)[kTiles],
                                                float (&total)[kTiles][4]) const {
    const int r = lane_ / 4;
    const std::byte* const scales = unit + kUnitCodeBytes;
    float scale[2];
    if (p_.scale_dtype == DType::kF32) {
      const float2 pair = reinterpret_cast<const float2*>(scales)[r];
      scale[0] = pair.x, scale[1] = pair.y;
    } else {  // without a branch
      const uint32_t pair = reinterpret_cast<const uint32_t*>(scales)[r];
      const bool is_f16 = p_.scale_dtype == DType::kF16;
      const float2 of_f16 = __half22float2(reinterpret_cast<const __half2&>(pair));
      scale[0] = is_f16 ? of_f16.x : __uint_as_float(pair << 16);
      scale[1] = is_f16 ? of_f16.y : __uint_as_float(pair & 0xFFFF0000);
    }
    uint32_t zeros = 0x0808;
    if (p_.has_zeros) zeros = reinterpret_cast<const uint16_t*>(unit + p_.unit_bytes - kUnitRows)[r];
    const typename Codec::State state(zeros);
    float sum[kTiles][2][4] = {};
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const uint4 words = reinterpret_cast<const uint4*>(unit)[v * 32 + lane_];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t low[4], high[4];
        Codec::decode(h == 0 ? words.x : words.z, state.low, low);
        Codec::decode(h == 0 ? words.y : words.w, state.high, high);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 of_x = operand_of_x(x, 2 * v + h, x_lane[t]);
          mma(sum[t][0], {low[0], high[0], low[1], high[1]}, of_x.x, of_x.y);
          mma(sum[t][1], {low[2], high[2], low[3], high[3]}, of_x.z, of_x.w);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[t][i] = fmaf(sum[t][0][i] + sum[t][1][i], scale[i / 2], total[t][i]);
  }
  // From a unit's x to the next one's.
  __device__ __forceinline__ int x_step() const { return kRows ? Shape::kUnitXBytes : Shape::kUnitXBytes * p_.m; }
  // Of 32 columns.
  __device__ __forceinline__ uint4 operand_of_x(const std::byte* x, int step, int x_lane) const {
    if constexpr (!kRows) return *reinterpret_cast<const uint4*>(x + step * p_.m * 64 + x_lane);
    const std::byte* const at = x + step * (Shape::kUnitXBytes / 4) + x_lane;
    const auto word = [&](int i) { return *reinterpret_cast<const uint32_t*>(at + 16 * i); };
    if constexpr (Codec::kBf16) {
      return {word(0), word(1), word(2), word(3)};
    } else {
      return Codec::arrange(word(0), word(1));
    }
  }
  __device__ __forceinline__ static void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (Codec::kBf16) {
      mma_bf16(sum, a, b0, b1);
    } else {
      mma_f16(sum, a, b0, b1);
    }
  }

  // For the warp that ends the strip.
  __device__ __forceinline__ void leave(const float (&total)[kTiles][4]) const {
    float* const sums = sums_of(team()) + warp_ % kUnitTeamWarps * (Shape::kTokens * kUnitSumStride);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = t * kUnitTokens + lane_ % 4 * 2 + i % 2, row = lane_ / 4 + i / 2 * 8;
        sums[token * kUnitSumStride + row] = total[t][i];
      }
  }

  // One thread: rows of the slab that begins at unit `begin`. Nobody reads the one before any more.
  __device__ __forceinline__ void ask_rows(int begin) const {
    const int bytes = min(p_.slab_units, p_.unit_columns - begin) * Shape::kUnitXBytes;
    barriers_.x_full.arrive_and_expect(p_.m * bytes);
    const uint8_t* from = static_cast<const uint8_t*>(p_.x) + int64_t{begin} * Shape::kUnitXBytes;
    for (int token = 0; token < p_.m; ++token, from += p_.x_stride)
      copy_bulk(x_ + token * Shape::row_bytes(p_.slab_units), from, bytes, barriers_.x_full);
  }

  // x of E4M3 to the lanes' order, 16 columns a thread: half of a block of 32. Blocks begin at different places, so that
  // not all ask for the same lines at once.
  __device__ void place_rows() {
    const int shift = min(32 - __clz(p_.m - 1), 2);  // tokens side by side in a warp, a power of two
    const int chunk_bits = 5 - shift, chunks = p_.unit_columns * (kUnitColumns / 16);
    const int groups = (chunks + (1 << chunk_bits) - 1) >> chunk_bits,
              token_groups = (p_.m + (1 << shift) - 1) >> shift;
    const int all = groups * token_groups;
    int item = warp_ + static_cast<int>(blockIdx.x) * 5 % all;
#pragma unroll 4
    for (int left = all - warp_; left > 0; left -= Shape::kWarps, item += Shape::kWarps) {
      while (item >= all) item -= all;
      const int token_group = item / groups, group = item - token_group * groups;
      const int token = (token_group << shift) + (lane_ >> chunk_bits);
      const int chunk = (group << chunk_bits) + (lane_ & ((1 << chunk_bits) - 1)), block = chunk / 2;
      if (token >= p_.m || chunk >= chunks) continue;
      const uint4 codes =
          __ldcg(reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(p_.x) + token * p_.x_stride + chunk * 16));
      std::byte* const to = x_ + (block * p_.m + token) * 64 + chunk % 2 * 8;
      const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // In turns, so that neighbouring blocks do not meet on a bank.
        const int q = (i + block) % 4;
        const uint32_t four = q == 0 ? word[0] : q == 1 ? word[1] : q == 2 ? word[2] : word[3];
        *reinterpret_cast<uint2*>(to + q * 16) = Codec::arrange_half(four);
      }
    }
  }

  // Four lanes bring 64 bytes of a token, 32 columns. A thread has one token; blocks of columns go round.
  struct XPlace {
    int shift;  // tokens side by side, a power of two
    int token, block, step;
  };
  __device__ __forceinline__ XPlace x_place() const {
    const int shift = 32 - __clz(p_.m - 1), item = static_cast<int>(threadIdx.x) / 4;
    return {shift, item & ((1 << shift) - 1), item >> shift, Shape::kMultipliers / 4 >> shift};
  }
  // The lane's columns of a block: four, and those 16 behind.
  __device__ __forceinline__ void place_x(int block, int token, uint2 codes) const {
    if constexpr (kRows) {
      auto* const to =
          reinterpret_cast<uint32_t*>(x_ + token * Shape::row_bytes(p_.slab_units) + block * 32) + lane_ % 4;
      to[0] = codes.x, to[4] = codes.y;
    } else {
      reinterpret_cast<uint4*>(x_)[(block * p_.m + token) * 4 + lane_ % 4] = Codec::arrange(codes.x, codes.y);
    }
  }

  // All of x, rounded to E4M3.
  __device__ void round_x() {
    using Numbers = Pack<__nv_bfloat16, 8>;
    const XPlace place = x_place();
    const bool is_there = place.token < p_.m;
    const auto* const from =
        reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(p_.x) + place.token * p_.x_stride) + lane_ % 4;
    const int blocks = p_.unit_columns * (kUnitColumns / kXColumns);
    Numbers kept[kUnitKept];
    unsigned largest = 0;
#pragma unroll
    for (int j = 0; j < kUnitKept; ++j) {
      const int block = place.block + j * place.step;
      if (!is_there || block >= blocks) continue;
      reinterpret_cast<uint2*>(&kept[j])[0] = __ldcg(from + block * (kXColumns / 4));
      reinterpret_cast<uint2*>(&kept[j])[1] = __ldcg(from + block * (kXColumns / 4) + 4);
    }
#pragma unroll
    for (int j = 0; j < kUnitKept; ++j)
      if (is_there && place.block + j * place.step < blocks) largest = largest_magnitude(kept[j], largest);
    float scale;
    if (p_.x_form == UnitsX::kToRoundBy) {
      scale = *p_.x_scale;
    } else {
      // Over the warp's lanes of the token, then over the warps.
      for (int step = 1; step < 32; step *= 2)
        if (step < 4 || step >= 4 << place.shift) largest = max(largest, __shfl_xor_sync(0xFFFFFFFF, largest, step));
      if (is_there && lane_ % 4 == 0 && lane_ < 4 << place.shift) atomicMax(&largest_[place.token], largest);
      named_barrier(1, Shape::kMultipliers);
      if (is_there) largest = largest_[place.token];
      scale = e4m3_scale_of(largest);
    }
    const E4m3Rounding rounding(scale, largest);
#pragma unroll
    for (int j = 0; j < kUnitKept; ++j) {
      const int block = place.block + j * place.step;
      if (!is_there || block >= blocks) continue;
      const Pack<uint8_t, 8> codes = rounding(kept[j]);
      place_x(block, place.token, reinterpret_cast<const uint2&>(codes));
    }
  }
  __device__ __forceinline__ float x_scale_of(int token) const {
    if (token >= p_.m || (p_.x_scale == nullptr && p_.x_form != UnitsX::kToRound)) return 1;
    if (p_.x_form == UnitsX::kToRound) return e4m3_scale_of(largest_[token]);
    return __ldcg(p_.x_scale + (p_.x_form == UnitsX::kToRoundBy ? 0 : token));
  }

  const UnitsParams& p_;
  UnitsBarriers& barriers_;
  uint32_t* const largest_;  // of each token of x, where it is rounded here
  std::byte *const ring_, *const x_;
  const int warp_, lane_;
};

template <class Codec, int kTiles, bool kRows>
__global__ void __launch_bounds__(UnitsShape<Codec, kTiles, kRows>::kThreads, 1)
    linear_units_kernel(const __grid_constant__ UnitsParams p) {
  using Shape = UnitsShape<Codec, kTiles, kRows>;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ UnitsBarriers barriers;
  __shared__ uint32_t largest[kUnitsMostRows];
  UnitsBlock<Codec, kTiles, kRows> block(p, shared, barriers, largest);
  const bool multiplies = threadIdx.x < Shape::kMultipliers;
  const int ended = static_cast<int>(threadIdx.x) / 32 - Shape::kWarps;  // the team whose strips this warp ends
  if (threadIdx.x % 32 == 0) {
    if (multiplies) {
      block.begin_copies();
    } else {
      barriers.sums_full[ended].init(32 * kUnitTeamWarps), barriers.sums_empty[ended].init(32);
      if (ended == 0) barriers.x_full.init(1);
      fence_barrier_init();
    }
  }
  if (threadIdx.x < kUnitsMostRows) largest[threadIdx.x] = 0;
  __syncthreads();
  pdl_launch_next();
  pdl_wait();
  if (multiplies) block.bring_x();
  __syncthreads();
  if (multiplies) {
    block.multiply();
  } else {
    block.end_strips(ended);
  }
}

}  // namespace hearth::sm90
