// SPDX-License-Identifier: Apache-2.0
// The linear layer on the CPU for quantized weights, decoded from their stored form as they are multiplied.
// docs/kernels/linear-quantized-cpu.md tells why and what it reaches.
//   I1. For one output: k is cut into blocks and those into units of kPer columns per lane; lane j of one accumulator
//       adds its products of a unit in order with fused multiply-adds (kI8PerGroup: to a sum of the unit, which times
//       its scale is added to the accumulator); a fixed tree adds the lanes, blocks are added in order, then the
//       token's scale, bias, residual. Both paths and every tile do exactly this.
//   I2. No read beyond the last element of a row of x, or of W.
// Runs on the threads of exec.pool; each has its own part of the workspace.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "hearth/kernels/linear/act_quantize.h"
#include "hearth/kernels/linear/linear.h"
#include "hearth/kernels/linear/linear_quantized_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/linear/linear_quantized_cpu.cpp"
#include "hearth/kernels/cpu/targets.h"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "hearth/kernels/cpu/vector-inl.h"
#include "hearth/kernels/linear/linear_tile-inl.h"
#include "hearth/kernels/linear/quantized_rows-inl.h"

HWY_BEFORE_NAMESPACE();
#include "hearth/kernels/linear/vnni-inl.h"
namespace hearth {
namespace HWY_NAMESPACE {
namespace {

namespace qp = quantized_plan;

// Tokens per register tile, as in linear_cpu.
constexpr int64_t kTokens = HWY_TARGET <= HWY_AVX3 ? 6 : 3;

template <class Row>
int64_t units_of(int64_t columns) {
  return lp::divide_up(columns, Row::kPer * kLanes);
}

// ---- Packing x ----------------------------------------------------------------------------------------

// The largest bits of |x|: NaN is above infinity above all numbers.
float max_magnitude(const float* x, int64_t count) {
  uint32_t largest = 0;
  for_channels(count, [&](auto d, int64_t i) HWY_ATTR {
    const hn::RebindToSigned<decltype(d)> di;
    const auto bits = hn::And(hn::BitCast(di, hn::LoadU(d, x + i)), hn::Set(di, 0x7FFFFFFF));
    largest = std::max(largest, static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, bits))));
  });
  return std::bit_cast<float>(largest);
}

// e4m3::from_float(v).to_float(). Adding 2^(e + 20), e the exponent, leaves 3 bits of mantissa, rounded to even.
template <class DV, class VV>
HWY_INLINE VV round_to_e4m3(DV d, VV v) {
  const hn::RebindToUnsigned<DV> du;
  const auto magnitude = hn::Min(hn::Abs(v), hn::Set(d, 448.0f));
  const auto normal = hn::BitCast(du, hn::Max(magnitude, hn::Set(d, 0x1p-6f)));
  const auto big = hn::BitCast(d, hn::Add(hn::And(normal, hn::Set(du, 0x7F800000u)), hn::Set(du, 20u << 23)));
  const auto rounded = hn::CopySign(hn::Sub(hn::Add(magnitude, big), big), v);
  return hn::IfThenElse(hn::IsNaN(v), v, rounded);
}

void divide_and_round(bool to_e4m3, float scale, float* x, int64_t count) {
  if (std::isnan(scale)) {
    std::fill_n(x, count, 0.0f);
    return;
  }
  for_channels(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::Div(hn::LoadU(d, x + i), hn::Set(d, scale));
    if (to_e4m3) {
      hn::StoreU(round_to_e4m3(d, v), d, x + i);
    } else {
      hn::StoreU(hn::Clamp(hn::Round(v), hn::Set(d, -127.0f), hn::Set(d, 127.0f)), d, x + i);
    }
  });
}

template <class T>
void load_row(const qp::Job& job, int64_t token, float* row) {
  const T* x = static_cast<const T*>(job.tile.x) + token * job.tile.x_stride;
  if (job.weight->k_order) {
    const auto* order = static_cast<const int32_t*>(job.weight->k_order.data);
    for (int64_t k = 0; k < job.tile.k; ++k) row[order[k]] = to_float(x[k]);
  } else {
    for_channels(job.tile.k, [&](auto d, int64_t i) HWY_ATTR { hn::StoreU(load_f32(d, x + i), d, row + i); });
  }
}

// Row `token` of x in stored order, rounded, zeros up to padded_k; returns the token's scale, group_scales the groups'.
float prepare_row(const qp::Job& job, int64_t token, float* row, float* group_scales) {
  const int64_t k = job.tile.k;
  if (job.tile.x_type == DType::kBf16) {
    load_row<bf16>(job, token, row);
  } else {
    load_row<float>(job, token, row);
  }
  std::fill(row + k, row + job.tile.padded_k, 0.0f);
  float scale = 1;
  switch (job.act) {
    case ActFormat::kNative: break;
    case ActFormat::kE4m3PerToken:
      scale = act_scale_of(max_magnitude(row, k), 448.0f);
      divide_and_round(true, scale, row, k);
      break;
    case ActFormat::kE4m3Static:
      scale = *static_cast<const float*>(job.weight->act_scale.data);
      divide_and_round(true, scale, row, k);
      break;
    case ActFormat::kI8PerGroup:
      std::fill_n(group_scales, qp::row_scale_floats(k), 0.0f);
      for (int64_t begin = 0, group = 0; begin < k; begin += job.group, ++group) {
        const int64_t count = std::min(job.group, k - begin);
        group_scales[group] = act_scale_of(max_magnitude(row + begin, count), 127.0f);
        divide_and_round(false, group_scales[group], row + begin, count);
      }
  }
  return scale;
}

// Tokens [begin, begin + count) become [unit][vector][token][lane], as Row says; where groups have sums of their own one more vector holds the scales of the lanes.
template <class Row>
void pack_tile(const qp::Job& job, int64_t begin, int64_t count, float* packed, float* scales, float* scratch) {
  constexpr int64_t kUnit = Row::kPer * kLanes;
  float* row = scratch;
  float* group_scales = scratch + job.tile.padded_k;
  const hn::RebindToSigned<D> di;
  const auto places = hn::Mul(hn::Iota(di, 0), hn::Set(di, Row::kColumnStride));
  const LaneScales lanes(job.group, Row::kPer);
  for (int64_t token = 0; token < count; ++token) {
    scales[token] = prepare_row(job, begin + token, row, group_scales);
    float* to = packed + token * kLanes;
    for (int64_t unit = 0; unit < units_of<Row>(job.tile.k); ++unit) {
      for (int64_t j = 0; j < Row::kVectors; ++j, to += count * kLanes) {
        if constexpr (requires { &Row::Products::pack; }) {
          Row::Products::pack(row + unit * kUnit, j, to);
        } else {
          hn::Store(hn::GatherIndex(D(), row + unit * kUnit + Row::first_column(j), places), D(), to);
        }
      }
      if constexpr (Row::kGrouped) {
        hn::Store(lanes.load(group_scales, unit), D(), to);
        to += count * kLanes;
      }
    }
  }
}

template <class Row>
int64_t packed_stride(const qp::Job& job) {
  return units_of<Row>(job.tile.padded_k) * Row::kUnitVectors * kLanes;
}

// out[token][row ...] = sums scale + bias + residual.
void finish_scaled(const qp::Job& job, float* sums, float scale, int64_t token, int64_t row, int64_t count) {
  if (job.act == ActFormat::kE4m3PerToken || job.act == ActFormat::kE4m3Static)
    for (int64_t i = 0; i < count; ++i) sums[i] *= scale;
  finish(job.tile, sums, token, row, count);
}

// ---- Direct path: at most qp::kDirectTokens tokens ------------------------------------------------------

// Adds the products of `units` units of 4 rows and kCount tokens to sums [kCount][lp::kDirectRows].
template <class Row, int kCount>
HWY_INLINE void tile_rows(const Row* rows, const float* x, int64_t first_unit, int64_t units, bool first_block,
                          float* sums) {
  V acc[4][kCount];
  for (auto& row : acc)
    for (V& v : row) v = hn::Zero(D());
  for (int64_t u = first_unit; u < first_unit + units; ++u, x += Row::kUnitVectors * kCount * kLanes) {
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      typename Row::Unit unit(rows[r], u);
      if constexpr (Row::kGrouped) {
        typename Row::Products::Sum sum[kCount];
        for (auto& v : sum) v = Row::Products::zero();
        HWY_UNROLL(8)
        for (int j = 0; j < Row::kVectors; ++j) {
          const auto w = unit.next();
          HWY_UNROLL(6)
          for (int t = 0; t < kCount; ++t)
            sum[t] = Row::Products::multiply_add(w, x + (j * kCount + t) * kLanes, sum[t]);
        }
        const V scale = unit.scale();
        HWY_UNROLL(6)
        for (int t = 0; t < kCount; ++t)
          acc[r][t] = hn::MulAdd(Row::Products::to_float(sum[t]),
                                 hn::Mul(scale, hn::Load(D(), x + (Row::kVectors * kCount + t) * kLanes)), acc[r][t]);
      } else {
        HWY_UNROLL(8)
        for (int j = 0; j < Row::kVectors; ++j) {
          const V w = unit.next();
          HWY_UNROLL(6)
          for (int t = 0; t < kCount; ++t)
            acc[r][t] = hn::MulAdd(w, hn::Load(D(), x + (j * kCount + t) * kLanes), acc[r][t]);
        }
      }
    }
  }
  HWY_UNROLL(6)
  for (int t = 0; t < kCount; ++t)
    add_lanes(acc[0][t], acc[1][t], acc[2][t], acc[3][t], first_block, sums + t * lp::kDirectRows);
}

template <class Row>
void tile_more_rows(int64_t tokens, const Row* rows, const float* x, int64_t first_unit, int64_t units,
                    bool first_block, float* sums) {
  if (tokens == 2) return tile_rows<Row, 2>(rows, x, first_unit, units, first_block, sums);
  if (tokens == 3) return tile_rows<Row, 3>(rows, x, first_unit, units, first_block, sums);
  if constexpr (kTokens == 6) {
    if (tokens == 4) return tile_rows<Row, 4>(rows, x, first_unit, units, first_block, sums);
    if (tokens == 5) return tile_rows<Row, 5>(rows, x, first_unit, units, first_block, sums);
    return tile_rows<Row, 6>(rows, x, first_unit, units, first_block, sums);
  }
}

template <class Row>
void tile_rows(int64_t tokens, const Row* rows, const float* x, int64_t first_unit, int64_t units, bool first_block,
               float* sums) {
  if (Row::kIsRare || tokens == 1) return tile_rows<Row, 1>(rows, x, first_unit, units, first_block, sums);
  if constexpr (!Row::kIsRare) tile_more_rows<Row>(tokens, rows, x, first_unit, units, first_block, sums);
}

// A tile's rows are a quarter of a piece apart: four streams that each run through memory in order.
template <class Row>
void direct(const qp::Job& job, lp::Range rows, std::byte* scratch) {
  const lp::Job& tile = job.tile;
  const int64_t stride = packed_stride<Row>(job);
  float* x = lp::as_floats(scratch);
  float* token_scales = x + tile.m * qp::packed_floats(tile.k);
  float* x_scratch = token_scales + qp::token_scale_floats(tile.m);
  float* w_scratch = x_scratch + qp::row_floats(tile.k);
  float* tile_sums = w_scratch + 4 * qp::row_scratch_floats(tile.k);  // [token][row of a quarter][quarter]
  float* sums = tile_sums + tile.m * lp::kDirectRows;                 // [row], of one token
  constexpr int64_t kTile = Row::kIsRare ? 1 : kTokens;
  for (int64_t token = 0; token < tile.m; token += kTile)
    pack_tile<Row>(job, token, std::min(kTile, tile.m - token), x + token * stride, token_scales + token, x_scratch);
  const typename Row::Shared shared(job);
  for (int64_t begin = rows.begin; begin < rows.end; begin += lp::kDirectRows) {
    const int64_t count = std::min(lp::kDirectRows, rows.end - begin), quarter = lp::divide_up(count, 4);
    for (int64_t i = 0; i < quarter; ++i) {
      // Rows past the end repeat the last one; their sums are not used.
      const auto row_at = [&](int64_t r) {
        return Row(shared, begin + std::min(r * quarter + i, count - 1),
                   w_scratch + r * qp::row_scratch_floats(tile.k));
      };
      const Row four[4] = {row_at(0), row_at(1), row_at(2), row_at(3)};
      for (int64_t k = 0, block = 0; block < tile.blocks.count; ++block, k += tile.blocks.size) {
        const int64_t first_unit = units_of<Row>(k);
        const int64_t units = units_of<Row>(std::min(tile.blocks.size, tile.k - k));
        for (int64_t token = 0; token < tile.m; token += kTile) {
          const int64_t in_tile = std::min(kTile, tile.m - token);
          tile_rows<Row>(in_tile, four, x + token * stride + first_unit * Row::kUnitVectors * in_tile * kLanes,
                         first_unit, units, block == 0, tile_sums + token * lp::kDirectRows + 4 * i);
        }
      }
    }
    for (int64_t token = 0; token < tile.m; ++token) {
      const float* of_token = tile_sums + token * lp::kDirectRows;
      for (int64_t r = 0; r < 4; ++r)
        for (int64_t i = 0; i < std::min(quarter, count - r * quarter); ++i)
          sums[r * quarter + i] = of_token[4 * i + r];
      finish_scaled(job, sums, token_scales[token], token, begin, count);
    }
  }
}

// ---- Panel path -----------------------------------------------------------------------------------------

// Rows of W decoded, [4 rows][unit][vector][row][lane].
template <class Row>
void fill_panel(const typename Row::Shared& shared, int64_t row, int64_t rows, int64_t first_unit, int64_t units,
                float* w_scratch, float* panel) {
  for (int64_t r = 0; r < lp::round_up(rows, 4); ++r) {
    const Row from(shared, row + std::min(r, rows - 1), w_scratch);
    float* to = panel + r / 4 * (units * Row::kUnitVectors * 4 * kLanes) + r % 4 * kLanes;
    for (int64_t u = first_unit; u < first_unit + units; ++u) {
      typename Row::Unit unit(from, u);
      HWY_UNROLL(8)
      for (int j = 0; j < Row::kVectors; ++j, to += 4 * kLanes) Row::Products::store(unit.next(), to);
      if constexpr (Row::kGrouped) {
        hn::Store(unit.scale(), D(), to);
        to += 4 * kLanes;
      }
    }
  }
}

// As tile_panel of linear_tile-inl.h, with a sum of every unit.
template <class Products, int kVectors, int kCount>
HWY_INLINE void tile_units(const float* panel, const float* x, int64_t units, bool first_block, float* sums) {
  V acc[4][kCount];
  for (auto& row : acc)
    for (V& v : row) v = hn::Zero(D());
  for (int64_t u = 0; u < units; ++u) {
    typename Products::Sum sum[4][kCount];
    for (auto& row : sum)
      for (auto& v : row) v = Products::zero();
    for (int j = 0; j < kVectors; ++j, x += kCount * kLanes, panel += 4 * kLanes) {
      HWY_UNROLL(4)
      for (int r = 0; r < 4; ++r) {
        const auto w = Products::load(panel + r * kLanes);
        HWY_UNROLL(6)
        for (int t = 0; t < kCount; ++t) sum[r][t] = Products::multiply_add(w, x + t * kLanes, sum[r][t]);
      }
    }
    HWY_UNROLL(4)
    for (int r = 0; r < 4; ++r) {
      const V scale = hn::Load(D(), panel + r * kLanes);
      HWY_UNROLL(6)
      for (int t = 0; t < kCount; ++t)
        acc[r][t] = hn::MulAdd(Products::to_float(sum[r][t]), hn::Mul(scale, hn::Load(D(), x + t * kLanes)), acc[r][t]);
    }
    x += kCount * kLanes, panel += 4 * kLanes;
  }
  HWY_UNROLL(6)
  for (int t = 0; t < kCount; ++t)
    add_lanes(acc[0][t], acc[1][t], acc[2][t], acc[3][t], first_block, sums + t * lp::kPanelRows);
}

template <class Products, int kVectors, int kCount>
void multiply_units(const float* panel, int64_t rows, const float* x, int64_t units, bool first_block, float* sums) {
  for (int64_t group = 0; group < rows; group += 4)
    tile_units<Products, kVectors, kCount>(panel + group * units * (kVectors + 1) * kLanes, x, units, first_block,
                                           sums + group);
}

template <class Products, int kVectors>
void multiply_units(int64_t tokens, const float* panel, int64_t rows, const float* x, int64_t units, bool first_block,
                    float* sums) {
  if (tokens == 1) return multiply_units<Products, kVectors, 1>(panel, rows, x, units, first_block, sums);
  if (tokens == 2) return multiply_units<Products, kVectors, 2>(panel, rows, x, units, first_block, sums);
  if (tokens == 3) return multiply_units<Products, kVectors, 3>(panel, rows, x, units, first_block, sums);
  if constexpr (kTokens == 6) {
    if (tokens == 4) return multiply_units<Products, kVectors, 4>(panel, rows, x, units, first_block, sums);
    if (tokens == 5) return multiply_units<Products, kVectors, 5>(panel, rows, x, units, first_block, sums);
    return multiply_units<Products, kVectors, 6>(panel, rows, x, units, first_block, sums);
  }
}

// All rows of the panel with one tile of tokens.
template <class Row>
void multiply(int64_t tokens, const float* panel, int64_t rows, const float* x, int64_t units, bool first_block,
              float* sums) {
  if constexpr (Row::kGrouped) {
    multiply_units<typename Row::Products, Row::kVectors>(tokens, panel, rows, x, units, first_block, sums);
  } else {
    multiply_panel(tokens, panel, rows, x, units * Row::kVectors, first_block, sums);
  }
}

template <class Row>
void panels(const qp::Job& job, lp::Range rows, lp::Range tokens, const float* packed, const float* token_scales,
            std::byte* scratch) {
  const lp::Job& tile = job.tile;
  const int64_t stride = packed_stride<Row>(job);
  float* w_scratch = lp::as_floats(scratch) + qp::row_floats(tile.k);
  float* panel = w_scratch + qp::row_scratch_floats(tile.k);
  float* sums = panel + lp::kPanelRows * lp::kBlockK / 8 * 9;
  const typename Row::Shared shared(job);
  for (int64_t row = rows.begin; row < rows.end; row += lp::kPanelRows) {
    const int64_t count = std::min(lp::kPanelRows, rows.end - row);
    for (int64_t k = 0, block = 0; block < tile.blocks.count; ++block, k += tile.blocks.size) {
      const int64_t first_unit = units_of<Row>(k);
      const int64_t units = units_of<Row>(std::min(tile.blocks.size, tile.k - k));
      fill_panel<Row>(shared, row, count, first_unit, units, w_scratch, panel);
      for (int64_t token = tokens.begin; token < tokens.end; token += kTokens) {
        const int64_t in_tile = std::min(kTokens, tokens.end - token);
        multiply<Row>(in_tile, panel, count,
                      packed + token * stride + first_unit * Row::kUnitVectors * in_tile * kLanes, units, block == 0,
                      sums + (token - tokens.begin) * lp::kPanelRows);
      }
    }
    for (int64_t token = tokens.begin; token < tokens.end; ++token)
      finish_scaled(job, sums + (token - tokens.begin) * lp::kPanelRows, token_scales[token], token, row, count);
  }
}

// f(Row type) of the job's format on this instruction set.
template <class F>
void with_row_type(const qp::Job& job, const F& f) {
  const WeightFormat& format = job.weight->format;
  const bool grouped = job.act == ActFormat::kI8PerGroup;
  constexpr int64_t kNibbleUnit = 8 * kLanes;
#if HWY_TARGET <= HWY_AVX3
  const bool integers = format.code == WeightCode::kU4 || format.code == WeightCode::kI4SignMagnitude ||
                        (format.integer_lines && format.bitvectors <= 4);
  if (grouped && integers && job.group % kNibbleUnit == 0) return f(static_cast<IntegerRow*>(nullptr));
#endif
  if (job.group % 8 != 0 || (format.code == WeightCode::kBitvectors && format.bitvectors > 4)) {
    grouped ? f(static_cast<AnyRow<true>*>(nullptr)) : f(static_cast<AnyRow<false>*>(nullptr));
  } else if (format.code == WeightCode::kBitvectors) {
    if (job.group % kNibbleUnit != 0) {
      grouped ? f(static_cast<AnyRow<true>*>(nullptr)) : f(static_cast<AnyRow<false>*>(nullptr));
    } else {
      grouped ? f(static_cast<LineRow<true>*>(nullptr)) : f(static_cast<LineRow<false>*>(nullptr));
    }
  } else if (format.code == WeightCode::kE4m3) {
    if (grouped || job.group % (E4m3Row::kPer * kLanes) != 0) {
      grouped ? f(static_cast<AnyRow<true>*>(nullptr)) : f(static_cast<AnyRow<false>*>(nullptr));
    } else {
      f(static_cast<E4m3Row*>(nullptr));
    }
  } else if (job.group % kNibbleUnit == 0) {
    grouped ? f(static_cast<GroupRow<true>*>(nullptr)) : f(static_cast<GroupRow<false>*>(nullptr));
  } else {
    grouped ? f(static_cast<MixedRow<true>*>(nullptr)) : f(static_cast<MixedRow<false>*>(nullptr));
  }
}

}  // namespace

void quantized_direct_rows(const qp::Job& job, lp::Range rows, std::byte* scratch) {
  with_row_type(job, [&]<class Row>(Row*) { direct<Row>(job, rows, scratch); });
}

// Packs the tokens of `range`, whose borders are multiples of the tile.
void quantized_pack_tokens(const qp::Job& job, lp::Range range, float* packed, float* token_scales,
                           std::byte* scratch) {
  with_row_type(job, [&]<class Row>(Row*) {
    for (int64_t token = range.begin; token < range.end; token += kTokens)
      pack_tile<Row>(job, token, std::min(kTokens, range.end - token), packed + token * packed_stride<Row>(job),
                     token_scales + token, lp::as_floats(scratch));
  });
}

void quantized_panel_rows(const qp::Job& job, lp::Range rows, lp::Range tokens, const float* packed,
                          const float* token_scales, std::byte* scratch) {
  with_row_type(job, [&]<class Row>(Row*) { panels<Row>(job, rows, tokens, packed, token_scales, scratch); });
}

}  // namespace HWY_NAMESPACE
}  // namespace hearth
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {
namespace {

namespace qp = quantized_plan;
namespace lp = linear_plan;

HWY_EXPORT(quantized_direct_rows);
HWY_EXPORT(quantized_pack_tokens);
HWY_EXPORT(quantized_panel_rows);

// A thread is worth waking for this many products: a loop of the pool costs about a microsecond.
constexpr int64_t kProductsPerThread = 32768;

void run_direct(const qp::Job& job, int64_t threads, ExecContext& exec) {
  const int64_t bytes = qp::direct_bytes(job.tile.m, job.tile.k);
  const auto body = [&](int thread) {
    if (thread >= threads) return;
    const lp::Range rows = lp::part(job.tile.n, lp::kTileRows, threads, thread);
    if (rows.begin < rows.end)
      HWY_DYNAMIC_DISPATCH(quantized_direct_rows)(job, rows, exec.workspace.data() + thread * bytes);
  };
  if (threads == 1) return body(0);
  exec.pool->run(body);
}

void run_panels(const qp::Job& job, int64_t threads, ExecContext& exec) {
  const int64_t m = job.tile.m, k = job.tile.k, held = std::min(m, lp::kBlockTokens);
  auto* packed = lp::as_floats(exec.workspace.data());
  auto* token_scales = packed + held * qp::packed_floats(k);
  std::byte* scratch = exec.workspace.data() + qp::packed_bytes(held, k);
  const int64_t block = lp::token_block(m), bytes = qp::panel_bytes(m, k);
  for (int64_t begin = 0; begin < m; begin += block) {
    qp::Job slice = job;
    slice.tile = lp::slice_tokens(job.tile, begin, std::min(block, m - begin));
    exec.pool->parallel_for(slice.tile.m, lp::kTokenUnit, [&](int64_t first, int64_t last, int thread) {
      HWY_DYNAMIC_DISPATCH(quantized_pack_tokens)
      (slice, {first, last}, packed, token_scales, scratch + thread * bytes);
    });
    const lp::Grid grid = lp::split(slice.tile.m, slice.tile.n, threads);
    exec.pool->run([&](int thread) {
      if (thread >= grid.rows * grid.tokens) return;
      const lp::Range rows = lp::part(slice.tile.n, lp::kTileRows, grid.rows, thread % grid.rows);
      const lp::Range tokens = lp::part(slice.tile.m, lp::kTokenUnit, grid.tokens, thread / grid.rows);
      if (rows.begin < rows.end && tokens.begin < tokens.end) HWY_DYNAMIC_DISPATCH(quantized_panel_rows)
      (slice, rows, tokens, packed, token_scales, scratch + thread * bytes);
    });
  }
}

}  // namespace

int64_t linear_quantized_cpu_workspace_bytes(int64_t m, int64_t, int64_t k, int threads) {
  const int64_t direct = threads * qp::direct_bytes(std::min(m, qp::kDirectTokens), k);
  if (m <= qp::kDirectTokens) return direct;
  return std::max(direct, qp::packed_bytes(std::min(m, lp::kBlockTokens), k) + threads * qp::panel_bytes(m, k));
}

Status linear_quantized_cpu(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  HEARTH_CHECK(exec.pool != nullptr, "linear_quantized_cpu without a thread pool");
  HEARTH_CHECK(supports_linear_quantized(args.weight->format), "linear_quantized_cpu with {}",
               to_string(args.weight->format));
  const QuantizedReader reader(*args.weight);
  qp::Job job{.tile = lp::make_job(args), .weight = args.weight, .reader = &reader, .act = args.weight->format.act};
  lp::Job& tile = job.tile;
  if (tile.m == 0) return {};
  tile.blocks = qp::blocks_of(tile.k);
  tile.padded_k = qp::padded(tile.k);
  job.row_bytes = dtype_bytes(tile.weight_type, tile.weight_stride);
  job.group = reader.groups() == 1 ? tile.padded_k : reader.group_size();
  const int64_t wanted = linear_quantized_cpu_workspace_bytes(tile.m, tile.n, tile.k, exec.pool->size());
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_quantized_cpu: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
  const int64_t threads = std::clamp<int64_t>(tile.m * tile.n * tile.k / kProductsPerThread, 1, exec.pool->size());
  if (tile.m <= qp::kDirectTokens) {
    run_direct(job, threads, exec);
  } else {
    run_panels(job, threads, exec);
  }
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
