// SPDX-License-Identifier: Apache-2.0
// Validates, rounds x, plans and starts the kernel of linear_nibble_wide_sm90.cuh, up to kRowsAtOnce rows of x at
// once.
#include "hearth/kernels/linear/linear_nibble_wide_sm90.h"

#include <algorithm>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_nibble_wide_sm90.cuh"
#include "hearth/kernels/linear/nibble_units.h"
#include "hearth/kernels/linear/round_rows_sm90.h"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

// What bounds the scratch memory; whole tiles.
constexpr int64_t kRowsAtOnce = 4096;
constexpr int kMostBlocks = 160;  // more multiprocessors than Hopper has
static_assert(kRowsAtOnce % kWideTokens == 0);
static_assert(StagedMemory::kCounters >= kMostBlocks * kWideMostTeams, "a step's counters are the warpgroups' flags");

constexpr int64_t kReadyBytes = kMostBlocks * kWideMostTeams * int64_t{sizeof(uint32_t)};
constexpr int64_t kPartialBytes = kMostBlocks * int64_t{kWideTokens} * 192 * int64_t{sizeof(float)};

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Where the parts of the scratch memory begin.
struct Scratch {
  int64_t ready, partial, size;

  Scratch(int64_t m, int64_t k)
      : ready(round_rows_bytes(std::min(m, kRowsAtOnce), k)),
        partial(ready + align256(kReadyBytes)),
        size(partial + kPartialBytes) {}
};

bool rounds_x(const WeightFormat& format) {
  return format.act == ActFormat::kE4m3PerToken || format.act == ActFormat::kE4m3Static;
}

bool is_aligned_rows(const ConstTensorView& view, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) == 0 &&
         (view.rows() == 1 || dtype_bytes(view.dtype, view.row_stride) % bytes == 0);
}

bool can_move_pairs(const NarrowPart& part) {
  const auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 4 == 0 && stride % 2 == 0;
  };
  return aligned(part.out, part.out_stride) &&
         (part.residual == nullptr || aligned(part.residual, part.residual_stride));
}

using Start = Status (*)(const WideParams&, const WideMaps&, void*);
struct Instance {
  int rows, tokens, units;
  Start start;
};

template <class Codec, class Config>
Status start(const WideParams& params, const WideMaps& maps, void* stream) {
  using Shape = WideShape<Codec, Config>;
  const auto kernel = linear_nibble_wide_kernel<Codec, Config>;
  Launch how(dim3(static_cast<unsigned>(params.plan.blocks)), dim3(Shape::kThreads), stream);
  how.pdl = true;
  how.shared_bytes = Shape::kSharedBytes;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes));
  return launch(how, kernel, params, maps);
}

template <class Codec, class Config>
Instance instance_with() {
  return {WideShape<Codec, Config>::kRows, Config::tokens, Config::units, start<Codec, Config>};
}

template <class Codec>
Instance instance_of(WideTile tile) {
  switch (tile) {
    case WideTile::k128x32: return instance_with<Codec, Wide128x32>();
    case WideTile::k128x64: return instance_with<Codec, Wide128x64>();
    case WideTile::k64x64:
      if constexpr (!Codec::kBf16) return instance_with<Codec, Wide64x64>();
      break;
    case WideTile::k192x128:
      if constexpr (!Codec::kHasState) return instance_with<Codec, Wide192x128>();
      break;
    default: break;
  }
  return instance_with<Codec, Wide128x128>();
}

Instance instance_of(const WeightFormat& format, WideTile tile) {
  switch (format.code) {
    case WeightCode::kI4SignMagnitude: return instance_of<SignMagnitudeFragments>(tile);
    case WeightCode::kC4: return instance_of<LevelFragments>(tile);
    default: return rounds_x(format) ? instance_of<OffsetE4m3Fragments>(tile) : instance_of<OffsetBf16Fragments>(tile);
  }
}

// x in chunks of 128 bytes of K, boxes of all chunks of a stage; W in units, boxes of those of a stage.
Result<WideMaps> make_maps(const ConstTensorView& x, const LinearWeight& w, const Instance& instance) {
  const int64_t bytes = dtype_bytes(x.dtype, 1), m = x.rows(), k = x.cols();
  const auto columns = static_cast<uint64_t>(kWideChunkBytes / bytes);
  WideMaps maps;
  HEARTH_TRY_ASSIGN(
      maps.x,
      encode_tensor_map(
          x.data, static_cast<int>(bytes),
          {.rank = 3,
           .size = {columns, static_cast<uint64_t>(m), static_cast<uint64_t>(k) / columns},
           .stride_bytes = {static_cast<uint64_t>(bytes),
                            static_cast<uint64_t>(dtype_bytes(x.dtype, m == 1 ? k : x.row_stride)), kWideChunkBytes},
           .box = {static_cast<uint32_t>(columns), static_cast<uint32_t>(instance.tokens),
                   static_cast<uint32_t>(instance.units * bytes)}}));
  // A side of a box has 256 elements at most, so 8 bytes are one.
  const auto unit = static_cast<uint64_t>(unit_bytes(w.format)), unit_columns = static_cast<uint64_t>(k / kUnitColumns);
  HEARTH_TRY_ASSIGN(
      maps.units,
      encode_tensor_map(w.units.data, 8,
                        {.rank = 3,
                         .size = {unit / 8, unit_columns, static_cast<uint64_t>((w.n + kUnitRows - 1) / kUnitRows)},
                         .stride_bytes = {8, unit, unit * unit_columns},
                         .box = {static_cast<uint32_t>(unit / 8), static_cast<uint32_t>(instance.units),
                                 static_cast<uint32_t>(instance.rows / kUnitRows)},
                         .swizzle = false}));
  return maps;
}

// Rows [begin, begin + rows) of x.
Status multiply_rows(const LinearArgs& args, int64_t begin, int64_t rows, ExecContext& exec, WideTile tile,
                     int multiprocessors) {
  const LinearWeight& w = *args.weight;
  const Scratch scratch(args.x.rows(), w.k);
  std::byte* const memory = exec.workspace.data();
  const bool is_rounded = args.x.dtype == DType::kE4m3, rounds = rounds_x(w.format);
  ConstTensorView x = args.x.slice_rows(begin, rows);
  const float* scale = nullptr;
  if (is_rounded) {
    scale = static_cast<const float*>(args.x_scale.data) + begin;
  } else if (rounds) {
    HEARTH_TRY_ASSIGN(const RowsE4m3 rounded, round_rows(x, w, memory, exec.stream));
    x = rounded.codes, scale = rounded.scale;
  }
  if (tile == WideTile::kChosen)
    tile = choose_wide_tile({.tokens = rows,
                             .n = w.n,
                             .k = w.k,
                             .is_e4m3 = rounds,
                             .has_zeros = w.format.code == WeightCode::kU4,
                             .multiprocessors = multiprocessors});
  const Instance instance = instance_of(w.format, tile);
  const auto token_tiles = static_cast<int>((rows + instance.tokens - 1) / instance.tokens);
  const auto tiles = static_cast<int>((w.n + instance.rows - 1) / instance.rows) * token_tiles;
  const auto chunks = static_cast<int>((w.k / kUnitColumns + instance.units - 1) / instance.units);
  WideParams params{.part = narrow_part(args),
                    // With one tile of tokens nobody reads a row of W again.
                    .plan = WidePlan(tiles, chunks, std::min(multiprocessors, kMostBlocks), token_tiles > 1),
                    .m = static_cast<int>(rows),
                    .token_tiles = token_tiles};
  NarrowPart& part = params.part;
  part.weight = static_cast<const uint8_t*>(w.units.data);
  const DType scale_dtype = unit_scale_dtype(w.format);
  params.are_f32 = scale_dtype == DType::kF32, params.are_f16 = scale_dtype == DType::kF16;
  const int64_t out_bytes = dtype_bytes(part.out_dtype, 1);
  part.out = static_cast<std::byte*>(part.out) + begin * part.out_stride * out_bytes;
  if (part.residual != nullptr)
    part.residual = static_cast<const std::byte*>(part.residual) + begin * part.residual_stride * out_bytes;
  params.in_pairs = can_move_pairs(part);
  params.unit_bytes = unit_bytes(w.format);
  params.has_zeros = w.format.has_zero_point;
  params.x_scale = scale;

  params.ready = exec.staged.counters;
  if (params.ready == nullptr) {
    params.ready = reinterpret_cast<uint32_t*>(memory + scratch.ready);
    HEARTH_CUDA_TRY(cudaMemsetAsync(params.ready, 0, kReadyBytes, static_cast<cudaStream_t>(exec.stream)));
  }
  params.partial = reinterpret_cast<float*>(memory + scratch.partial);
  HEARTH_TRY_ASSIGN(const WideMaps maps, make_maps(x, w, instance));
  return instance.start(params, maps, exec.stream);
}

}  // namespace

bool fits_nibble_wide(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  const bool is_rounded = args.x.dtype == DType::kE4m3;
  constexpr int64_t kMost = int64_t{1} << 30;
  // Of the least tiles, 128 rows and 32 tokens.
  const int64_t units = (w.n + 127) / 128 * ((std::min(args.x.rows(), kRowsAtOnce) + 31) / 32) * (w.k / 256 + 1);
  return w.units && w.k < kMost && w.n > 0 && w.n < kMost && units < kMost && args.x.rows() > 0 &&
         (is_rounded ? rounds_x(w.format) : args.x.dtype == DType::kBf16) && is_aligned_rows(args.x, 16);
}

int64_t nibble_wide_workspace_bytes(int64_t m, int64_t, int64_t k) { return Scratch(m, k).size; }

Status linear_nibble_wide_sm90(const LinearArgs& args, ExecContext& exec, WideTile tile) {
  HEARTH_CHECK(fits_nibble_wide(args), "linear: weights of format {}", to_string(args.weight->format));
  const int64_t m = args.x.rows(), wanted = nibble_wide_workspace_bytes(m, args.weight->n, args.weight->k);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_nibble_wide_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(),
                              wanted);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  for (int64_t begin = 0; begin < m; begin += kRowsAtOnce)
    HEARTH_TRY(multiply_rows(args, begin, std::min(kRowsAtOnce, m - begin), exec, tile, device->multiprocessors));
  return {};
}

}  // namespace hearth::sm90
