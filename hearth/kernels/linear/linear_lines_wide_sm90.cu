// SPDX-License-Identifier: Apache-2.0
// Validates, rounds x, plans and starts the kernel of linear_lines_wide_sm90.cuh, up to kRowsAtOnce rows of x at once.
#include "hearth/kernels/linear/linear_lines_wide_sm90.h"

#include <algorithm>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/linear_lines_wide_sm90.cuh"
#include "hearth/kernels/linear/round_groups_sm90.h"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

// What bounds the scratch memory; whole tiles.
constexpr int64_t kRowsAtOnce = 4096;
constexpr int kMostTokens = 128;  // of a tile
constexpr int kMostBlocks = 160;  // more multiprocessors than Hopper has
static_assert(kRowsAtOnce % kMostTokens == 0);
static_assert(StagedMemory::kCounters >= kMostBlocks * kLineWideRowTeams,
              "a step's counters are the warpgroups' flags");

constexpr int64_t kReadyBytes = kMostBlocks * kLineWideRowTeams * int64_t{sizeof(uint32_t)};
constexpr int64_t kPartialBytes = kMostBlocks * int64_t{kMostTokens} * kLineWideRows * int64_t{sizeof(float)};

int64_t align256(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Where the parts of the scratch memory begin.
struct Scratch {
  int64_t ready, partial, size;

  Scratch(int64_t m, int64_t k)
      : ready(round_groups_bytes(std::min(m, kRowsAtOnce), k)),
        partial(ready + align256(kReadyBytes)),
        size(partial + kPartialBytes) {}
};

bool can_move_pairs(const NarrowPart& part) {
  const auto aligned = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 4 == 0 && stride % 2 == 0;
  };
  return aligned(part.out, part.out_stride) &&
         (part.residual == nullptr || aligned(part.residual, part.residual_stride));
}

struct Instance {
  int tokens;
  Status (*start)(const LineWideParams&, const LineWideMaps&, void*);
};

template <int kTokens>
Status start(const LineWideParams& params, const LineWideMaps& maps, void* stream) {
  using Shape = LineWideShape<kTokens>;
  const auto kernel = linear_lines_wide_kernel<kTokens>;
  Launch how(dim3(static_cast<unsigned>(params.plan.blocks)), dim3(Shape::kThreads), stream);
  how.pdl = true;
  how.shared_bytes = Shape::kSharedBytes;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes));
  return launch(how, kernel, params, maps);
}

Instance instance_of(LineTile tile) {
  switch (tile) {
    case LineTile::k128x32: return {32, start<32>};
    case LineTile::k128x64: return {64, start<64>};
    default: return {128, start<128>};
  }
}

// x in groups of 128 bytes, boxes of those of a stage; its scales, two tokens an element; W in units. A side of a box
// has 256 elements at most, so 8 bytes are one.
Result<LineWideMaps> make_maps(const RowsI8& x, const LinearWeight& w, const Instance& instance) {
  constexpr uint64_t kColumns = kUnitColumns, kUnit = kLineUnitBytes;
  const auto m = static_cast<uint64_t>(x.codes.rows()), k = static_cast<uint64_t>(w.k);
  const auto tokens = static_cast<uint32_t>(instance.tokens);
  LineWideMaps maps;
  HEARTH_TRY_ASSIGN(maps.x, encode_tensor_map(x.codes.data, 1,
                                              {.rank = 3,
                                               .size = {kColumns, m, k / kColumns},
                                               .stride_bytes = {1, k, kColumns},
                                               .box = {kColumns, tokens, kLineWideUnits}}));
  const auto scale_stride = static_cast<uint64_t>(x.scale_stride);
  HEARTH_TRY_ASSIGN(maps.scales, encode_tensor_map(x.scale, 8,
                                                   {.rank = 2,
                                                    .size = {scale_stride / 2, k / kColumns},
                                                    .stride_bytes = {8, scale_stride * sizeof(float)},
                                                    .box = {tokens / 2, kLineWideUnits},
                                                    .swizzle = false}));
  HEARTH_TRY_ASSIGN(
      maps.units,
      encode_tensor_map(w.units.data, 8,
                        {.rank = 3,
                         .size = {kUnit / 8, k / kColumns, static_cast<uint64_t>((w.n + kUnitRows - 1) / kUnitRows)},
                         .stride_bytes = {8, kUnit, kUnit * (k / kColumns)},
                         .box = {kUnit / 8, kLineWideUnits, kLineWideRows / kUnitRows},
                         .swizzle = false}));
  return maps;
}

// Rows from `begin` on of out and residual, by the rounded rows of x.
Status multiply_rows(const LinearArgs& args, int64_t begin, const RowsI8& x, ExecContext& exec, LineTile tile,
                     int multiprocessors) {
  const LinearWeight& w = *args.weight;
  const Scratch scratch(args.x.rows(), w.k);
  std::byte* const memory = exec.workspace.data();
  const int64_t rows = x.codes.rows();
  if (tile == LineTile::kChosen) tile = choose_line_tile(rows);
  const Instance instance = instance_of(tile);
  const auto token_tiles = static_cast<int>((rows + instance.tokens - 1) / instance.tokens);
  const auto tiles = static_cast<int>((w.n + kLineWideRows - 1) / kLineWideRows) * token_tiles;
  const auto chunks = static_cast<int>((w.k / kUnitColumns + kLineWideUnits - 1) / kLineWideUnits);
  const auto* const units = static_cast<const uint8_t*>(w.units.data);
  LineWideParams params{.part = narrow_part(args),
                        .table = reinterpret_cast<const UnitLine*>(units + line_table_at(w.n, w.k)),
                        .lines = static_cast<int>(w.format.lines),
                        // With one tile of tokens nobody reads a row of W again.
                        .plan = WidePlan(tiles, chunks, std::min(multiprocessors, kMostBlocks), token_tiles > 1),
                        .m = static_cast<int>(rows),
                        .token_tiles = token_tiles};
  NarrowPart& part = params.part;
  part.weight = units;
  const int64_t out_bytes = dtype_bytes(part.out_dtype, 1);
  part.out = static_cast<std::byte*>(part.out) + begin * part.out_stride * out_bytes;
  if (part.residual != nullptr)
    part.residual = static_cast<const std::byte*>(part.residual) + begin * part.residual_stride * out_bytes;
  params.in_pairs = can_move_pairs(part);
  params.ready = exec.staged.counters;
  if (params.ready == nullptr) {
    params.ready = reinterpret_cast<uint32_t*>(memory + scratch.ready);
    HEARTH_CUDA_TRY(cudaMemsetAsync(params.ready, 0, kReadyBytes, static_cast<cudaStream_t>(exec.stream)));
  }
  params.partial = reinterpret_cast<float*>(memory + scratch.partial);
  HEARTH_TRY_ASSIGN(const LineWideMaps maps, make_maps(x, w, instance));
  return instance.start(params, maps, exec.stream);
}

}  // namespace

bool fits_lines_wide(const LinearArgs& args) {
  const LinearWeight& w = *args.weight;
  constexpr int64_t kMost = int64_t{1} << 30;
  // Of the least tiles, 128 rows and 32 tokens.
  const int64_t stages = (w.n + kLineWideRows - 1) / kLineWideRows *
                         ((std::min(args.x.rows(), kRowsAtOnce) + 31) / 32) *
                         (w.k / (kLineWideUnits * kUnitColumns) + 1);
  return w.units && w.n > 0 && w.n < kMost && w.k < (int64_t{1} << 20) && stages < kMost && args.x.rows() > 0 &&
         can_round_groups(args.x);
}

int64_t lines_wide_workspace_bytes(int64_t m, int64_t k) { return Scratch(m, k).size; }

Status linear_lines_wide_sm90(std::span<const LinearArgs> parts, ExecContext& exec, LineTile tile) {
  const LinearArgs& first = parts.front();
  for (const LinearArgs& args : parts)
    HEARTH_CHECK(fits_lines_wide(args) && args.weight->k == first.weight->k, "linear: weights of format {}, k {}, {}",
                 to_string(args.weight->format), args.weight->k, first.weight->k);
  const int64_t m = first.x.rows(), wanted = lines_wide_workspace_bytes(m, first.weight->k);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_lines_wide_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(),
                              wanted);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  for (int64_t begin = 0; begin < m; begin += kRowsAtOnce) {
    const ConstTensorView rows = first.x.slice_rows(begin, std::min(kRowsAtOnce, m - begin));
    HEARTH_TRY_ASSIGN(const RowsI8 x, round_groups(rows, exec.workspace.data(), exec.stream));
    for (const LinearArgs& args : parts) HEARTH_TRY(multiply_rows(args, begin, x, exec, tile, device->multiprocessors));
  }
  return {};
}

}  // namespace hearth::sm90
