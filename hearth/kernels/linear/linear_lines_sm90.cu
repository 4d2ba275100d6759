// SPDX-License-Identifier: Apache-2.0
// The linear layer for weights of bitvectors in units. More than 16 rows are linear_lines_wide_sm90.h's. Else, and where
// rows are not whole 16 bytes, x is rounded and arranged in scratch memory (arrange_groups_sm90.h), up to 16 rows at a
// time, then multiplied by the kernel of linear_lines_sm90.cuh. What is not packed is linear_quantized_sm90's.
#include "hearth/kernels/linear/linear_lines_sm90.cuh"

#include <algorithm>

#include "hearth/base/check.h"
#include "hearth/kernels/linear/arrange_groups_sm90.h"
#include "hearth/kernels/linear/linear_cuda.h"
#include "hearth/kernels/linear/linear_lines_wide_sm90.h"
#include "hearth/kernels/linear/pack_line_units_sm90.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace sm90 {
namespace {

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Beside the rings: barriers, which lie outside of dynamic shared memory, and what aligns it.
constexpr int kOtherBytes = 3 * 1024;
template <class Shape>
int slots_of(const LineParams& p) {
  const int room = kLineSharedBytes - kOtherBytes - Shape::fixed_bytes(p);
  return std::min(room / (kLineWarps * p.piece * kLineUnitBytes), kLineMostSlots);
}

// Blocks for each weight, as many as multiprocessors in all: the strips of one are to be as many as may be.
void share_blocks(LineParams& p, int blocks) {
  int each = 0, all = 0;  // strips of a block
  do {
    ++each, all = 0;
    for (int i = 0; i < p.parts; ++i) all += p.part[i].blocks = ceil_div(p.part[i].strips, each);
  } while (all > blocks);
  for (; all < blocks; ++all) {
    LinePart* const busiest = std::max_element(p.part, p.part + p.parts, [](const LinePart& a, const LinePart& b) {
      return int64_t{a.strips} * b.blocks < int64_t{b.strips} * a.blocks;
    });
    if (busiest->blocks >= busiest->strips) break;
    ++busiest->blocks;
  }
  for (int i = 1; i < p.parts; ++i) p.part[i].first_block = p.part[i - 1].first_block + p.part[i - 1].blocks;
}

template <class Shape>
Status start(LineParams p, const CudaDeviceInfo& device, void* stream) {
  p.slots = slots_of<Shape>(p);
  HEARTH_CHECK(p.slots >= 1, "linear: {} rows of {} units", p.m, p.unit_columns);
  const auto kernel = linear_lines_kernel<Shape>;
  const LinePart& last = p.part[p.parts - 1];
  Launch how(dim3(static_cast<unsigned>(last.first_block + last.blocks)), dim3(kLineThreads), stream);
  how.pdl = true;
  how.shared_bytes = Shape::fixed_bytes(p) + kLineWarps * p.slots * p.piece * kLineUnitBytes;
  if (kLineSharedBytes > device.block_shared_bytes)
    return unsupported("linear: a block of this GPU has {} bytes of shared memory, wanted {}",
                       device.block_shared_bytes, kLineSharedBytes);
  HEARTH_TRY(enter_cuda_device());
  // The same for every product: another thread may be about to start this kernel.
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kLineSharedBytes));
  return launch(how, kernel, p);
}

// Pieces of two units, because few copies are quick to ask for; of one where else there were no second one under way. But
// with 16 tokens a single one of two is better: gate_up 28.2 us, three of one 34.0.
template <int kTiles>
Status start(LineParams p, const CudaDeviceInfo& device, void* stream) {
  using Near = LineShape<kTiles, false>;
  constexpr int kLeastPiece = kTiles == 1 ? 1 : 2, kLeastSlots = kTiles == 1 ? 2 : 1;
  for (p.piece = 2; p.piece >= kLeastPiece; --p.piece)
    if (slots_of<Near>(p) >= kLeastSlots) return start<Near>(p, device, stream);
  p.piece = 2;
  return start<LineShape<kTiles, true>>(p, device, stream);
}

LinePart part_of(const LinearArgs& args, int64_t begin, int64_t rows) {
  const LinearWeight& w = *args.weight;
  const auto* const units = static_cast<const uint8_t*>(w.units.data);
  const ConstTensorView residual = args.residual ? args.residual.slice_rows(begin, rows) : ConstTensorView();
  const TensorView out = args.out.slice_rows(begin, rows);
  return {.units = units,
          .table = reinterpret_cast<const UnitLine*>(units + line_table_at(w.n, w.k)),
          .lines = static_cast<int>(w.format.lines),
          .n = static_cast<int>(w.n),
          .strips = ceil_div(w.n, kUnitRows),
          .first_block = 0,
          .blocks = 0,
          .bias = w.bias.data,
          .residual = residual.data,
          .out = out.data,
          .residual_stride = residual.row_stride,
          .out_stride = out.row_stride,
          .bias_dtype = w.bias.dtype,
          .out_dtype = out.dtype};
}

int64_t scratch_bytes(int64_t m, int64_t k) {
  return arranged_bytes(static_cast<int>(k / kUnitColumns), static_cast<int>(std::min<int64_t>(m, kLineMostRows)));
}

bool fits(const LinearArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const LinearWeight& w = *args.weight;
  return w.units && w.n > 0 && w.n < kMost && w.k < (int64_t{1} << 22) && can_arrange_groups(args.x);
}

// Weights with the same x.
Status multiply(std::span<const LinearArgs> parts, ExecContext& exec) {
  const LinearArgs& first = parts.front();
  const int64_t m = first.x.rows(), k = first.weight->k;
  if (m > kLineMostRows && std::ranges::all_of(parts, fits_lines_wide)) return linear_lines_wide_sm90(parts, exec);
  const int64_t wanted = scratch_bytes(m, k);
  if (static_cast<int64_t>(exec.workspace.size()) < wanted)
    return resource_exhausted("linear_lines_sm90: workspace of {} bytes, wanted {}", exec.workspace.size(), wanted);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  for (int64_t begin = 0; begin < m; begin += kLineMostRows) {
    const int64_t rows = std::min<int64_t>(kLineMostRows, m - begin);
    HEARTH_TRY(arrange_groups(first.x.slice_rows(begin, rows), exec.workspace.data(), exec.stream));
    LineParams p{.m = static_cast<int>(rows),
                 .unit_columns = static_cast<int>(k / kUnitColumns),
                 .most_lines = 0,
                 .x = exec.workspace.data()};
    for (const LinearArgs& args : parts) {
      p.part[p.parts++] = part_of(args, begin, rows);
      p.most_lines = std::max(p.most_lines, p.part[p.parts - 1].lines);
    }
    share_blocks(p, device->multiprocessors);
    HEARTH_TRY(p.m <= kLineTokens ? start<1>(p, *device, exec.stream) : start<2>(p, *device, exec.stream));
  }
  return {};
}

}  // namespace
}  // namespace sm90

bool supports_linear_lines_sm90(const WeightFormat& format, DType activation) {
  return activation == DType::kBf16 && has_line_units(format, format.group_k);
}

int64_t linear_lines_sm90_packed_bytes(const WeightFormat& format, int64_t n, int64_t k) {
  return has_line_units(format, k) ? line_units_bytes(format, n, k) : 0;
}

Status linear_lines_sm90_pack(LinearWeight& weight, std::byte* to, void* stream) {
  if (!has_line_units(weight.format, weight.k) || weight.k_order) return {};
  HEARTH_TRY(sm90::pack_line_units(weight, to, stream));
  weight.units = ConstTensorView(to, DType::kU8, Shape{line_units_bytes(weight.format, weight.n, weight.k)});
  weight.codes = weight.lines = weight.line_scales = weight.line_index = {};
  return {};
}

int64_t linear_lines_sm90_workspace_bytes(int64_t m, int64_t n, int64_t k, int threads) {
  return std::max({linear_quantized_sm90_workspace_bytes(m, n, k, threads), sm90::scratch_bytes(m, k),
                   m > sm90::kLineMostRows ? sm90::lines_wide_workspace_bytes(m, k) : 0});
}

Status linear_lines_sm90(const LinearArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate_on_device(args));
  if (!args.weight->units) return linear_quantized_sm90(args, exec);
  if (!sm90::fits(args))
    return unsupported(
        "linear: packed weights [{}, {}] and x of {} with row stride {}, wanted bf16 in rows of whole 8 bytes",
        args.weight->n, args.weight->k, dtype_name(args.x.dtype), args.x.row_stride);
  return sm90::multiply({&args, 1}, exec);
}

Status linear_lines_sm90_parts(std::span<const LinearArgs> parts, ExecContext& exec) {
  if (parts.empty()) return {};
  bool together = parts.size() <= sm90::kLineMostParts;
  for (const LinearArgs& args : parts) {
    HEARTH_TRY(validate_on_device(args));
    together = together && sm90::fits(args) && args.weight->k == parts.front().weight->k;
  }
  if (together) return sm90::multiply(parts, exec);
  for (const LinearArgs& args : parts) HEARTH_TRY(linear_lines_sm90(args, exec));
  return {};
}

}  // namespace hearth
